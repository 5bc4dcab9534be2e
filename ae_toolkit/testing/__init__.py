"""Checks of what contracts demand, for the tests of plugins and for our own.

from ae_toolkit.testing import check_plugin

def test_my_package_keeps_its_contracts():
    check_plugin("my-package")
"""

from ae_toolkit.testing.contracts import check_modality, check_part
from ae_toolkit.testing.plugins import check_plugin

__all__ = ["check_modality", "check_part", "check_plugin"]
