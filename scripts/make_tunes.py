"""Copies the bundled tunes out of the collections: `python scripts/make_tunes.py DATA`.

DATA is the folder that holds `midi/`. A few tunes under their own names, for examples, and 60 more
of several meters, each with its own title, for training without data.
"""

import random
import shutil
import sys
from pathlib import Path

from ae_music.datasets import TUNE_COLLECTIONS, title_of
from ae_music.grid import KNOWN_METERS, METER_CLASSES
from ae_music.modality import Melodies

SAMPLES = Path(__file__).parents[1] / "plugins/ae_music/samples"
SHARES = dict(zip(KNOWN_METERS, (24, 12, 8, 12, 4), strict=True))

NAMED = {
    "drowsy-maggie": "oneills-1850/1376-1475-1376-14751425.mid",
    "salamanca-reel": "oneills-1850/1276-1375-1276-13751348.mid",
    "smash-the-windows-reel": "ryans-mammoth/SmashTheWindowsReel-SmashTheWindowsReel1.mid",
    "miss-mcleods-reel": "oneills-1850/1376-1475-1376-14751418.mid",
    "garryowen": "oneills-1850/0951-0981-0951-0981971.mid",
    "smash-the-windows": "oneills-1850/0951-0981-0951-0981965.mid",
    "rakes-of-mallow": "oneills-1850/1801-1850-1801-18501814.mid",
    "rocky-road-to-dublin": "oneills-1850/1116-1135_ml-1116-1135_ml1116.mid",
    "planxty-ocarolan": "oneills-1850/0626-0700-0626-0700668.mid",
    "chorale-bwv66.6": "bach-chorales/bwv66.6.mid",
}


def main(root: Path) -> None:
    SAMPLES.mkdir(exist_ok=True)
    for name, source in NAMED.items():
        shutil.copyfile(root / source, SAMPLES / f"{name}.mid")
    shutil.rmtree(SAMPLES / "tunes", ignore_errors=True)
    (SAMPLES / "tunes").mkdir()
    modality, wanted, titles = Melodies(), dict(SHARES), set()
    files = sorted(file for name in TUNE_COLLECTIONS for file in (root / name).glob("*.mid"))
    random.Random(0).shuffle(files)
    for file in files:
        melody, *more = modality.read(file)
        title, meter = title_of(melody), METER_CLASSES.get(melody.meter)
        if more or meter is None or not wanted[meter] or title in titles:
            continue
        wanted[meter] -= 1
        titles.add(title)
        shutil.copyfile(file, SAMPLES / "tunes" / f"{title[:40]}.mid")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "midi")
