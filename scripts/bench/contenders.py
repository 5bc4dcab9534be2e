"""Who competes. Each trains one work in a process of its own and says what its clock and judge say.

`ours` is not among them: it is the command `ae train`, watched from outside by `ours.py`.
"""

from __future__ import annotations

import copy
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench.work import (
    HIDDEN,
    LEARNING_RATE,
    PIXELS,
    Z_DIM,
    Clock,
    Work,
    fast_bf16,
    negative_elbo,
    peak_mb,
    read_digits,
    speed_of,
    synchronise,
)

if TYPE_CHECKING:
    from torch import Tensor, nn


class Contender(NamedTuple):
    """One way to train a VAE.

    Attributes:
        train: `(work, clock)` to what `negative_elbo` takes: encode, decode.
        precision: fp32, bf16, or auto: bf16 where the device multiplies it in hardware.
        nets: which it trains.
        needs: packages, as pip names them.
        quick: whether `--quick` includes it.
    """

    train: Callable[[Work, Clock], tuple[Any, Any]]
    precision: str = "fp32"
    nets: tuple[str, ...] = ("dense",)
    needs: tuple[str, ...] = ()
    quick: bool = True

    @property
    def missing(self) -> list[str]:
        """What must be installed first."""
        return [name for name in self.needs if find_spec(name) is None]


def compete(name: str, work: Work, spawned: float) -> dict[str, Any]:
    """Trains and measures; the judge comes after everything that is timed."""
    clock = Clock(spawned)
    encode, decode = CONTENDERS[name].train(work, clock)
    wall = clock.now()
    peak = peak_mb(resource.getrusage(resource.RUSAGE_SELF))
    precision = CONTENDERS[name].precision
    if precision == "auto":
        precision = "bf16" if fast_bf16(work.device) else "fp32"
    return {
        **speed_of(clock.started, clock.marks, work.batch_size)._asdict(),
        "wall": wall,
        "peak_mb": peak,
        "precision": precision,
        **negative_elbo(encode, decode, read_digits(work.folder, "test")[: work.num_test]),
    }


# The net of all PyTorch contenders.


def dense_net() -> nn.ModuleDict:
    from torch import nn

    return nn.ModuleDict(
        {
            "hidden": nn.Linear(PIXELS, HIDDEN),
            "code": nn.Linear(HIDDEN, 2 * Z_DIM),
            "back": nn.Linear(Z_DIM, HIDDEN),
            "pixels": nn.Linear(HIDDEN, PIXELS),
        }
    )


def encode_dense(net: nn.ModuleDict, x: Tensor) -> tuple[Tensor, Tensor]:
    """`(B, 784)` or pictures to mean and log variance."""
    mean, logvar = net["code"](net["hidden"](x.flatten(1)).relu()).float().chunk(2, 1)
    return mean, logvar


def decode_dense(net: nn.ModuleDict, z: Tensor) -> Tensor:
    """`(B, D)` to logits `(B, 784)`."""
    return net["pixels"](net["back"](z).relu()).float()


def judged(net: nn.ModuleDict) -> tuple[Any, Any]:
    net = net.cpu().float()
    return partial(encode_dense, net), partial(decode_dense, net)


# PyTorch by hand.


def torch_loop(work: Work, clock: Clock, *, compiled: bool = False) -> tuple[Any, Any]:
    """Tensors in memory, no wait within an epoch, a fused optimiser."""
    import torch
    import torch.nn.functional as F

    device = torch.device(work.device)
    data = torch.from_numpy(read_digits(work.folder, "train").copy()).to(device)
    data = data.flatten(1).float() / 255
    torch.manual_seed(0)
    net = dense_net().to(device)
    optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, fused=True)
    bf16 = compiled and fast_bf16(work.device)

    def loss_of(x: Tensor) -> Tensor:
        cast = torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else nullcontext()
        with cast:
            mean, logvar = encode_dense(net, x)
            z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            logits = decode_dense(net, z)
        entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
        return (entropy + 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)).mean()

    mode = "reduce-overhead" if work.device == "cuda" else None  # CUDA graphs
    dispatch = torch.compile(loss_of, dynamic=False, mode=mode) if compiled else loss_of
    clock.start()
    done = 0
    for _ in range(work.epochs):
        order = torch.randperm(len(data), device=device)
        for at in range(0, work.per_epoch * work.batch_size, work.batch_size):
            loss = dispatch(data[order[at : at + work.batch_size]])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            done += 1
            if done % work.chunk == 0:
                synchronise(work.device)
                clock.mark(work.chunk * work.batch_size)
    return judged(net)


def torch_tutorial(work: Work, clock: Clock) -> tuple[Any, Any]:
    """The loop of PyTorch's own VAE example, as it stands there but for the size of the net.

    https://github.com/pytorch/examples/blob/main/vae/main.py: a `DataLoader` over torchvision's
    MNIST, with one worker where there is an accelerator and none where there is not, the loss
    read at every step.
    """
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    device = torch.device(work.device)
    torch.manual_seed(0)
    options = {} if work.device == "cpu" else {"num_workers": 1, "pin_memory": True}
    loader = DataLoader(
        datasets.MNIST(work.folder, train=True, transform=transforms.ToTensor()),
        batch_size=work.batch_size,
        shuffle=True,
        **options,
    )
    net = dense_net().to(device)
    optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    clock.start()
    images = done = 0
    for _ in range(work.epochs):
        train_loss = 0.0
        for data, _ in loader:
            data = data.to(device)
            optimiser.zero_grad()
            mean, logvar = encode_dense(net, data.view(-1, PIXELS))
            z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            recon = torch.sigmoid(decode_dense(net, z))
            entropy = F.binary_cross_entropy(recon, data.view(-1, PIXELS), reduction="sum")
            loss = entropy - 0.5 * torch.sum(1 + logvar - mean.pow(2) - logvar.exp())
            loss.backward()
            train_loss += loss.item()
            optimiser.step()
            images, done = images + len(data), done + 1
            if done % work.chunk == 0:
                clock.mark(images)
                images = 0
    return judged(net)


# pythae.


def pythae_trainer(work: Work, clock: Clock) -> tuple[Any, Any]:
    """Its VAE in its trainer: the same dense net, or its own convolutional one."""
    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.models.nn.benchmarks.mnist import Decoder_Conv_AE_MNIST, Encoder_Conv_VAE_MNIST
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Encoder(BaseEncoder):
        def __init__(self, net: nn.ModuleDict):
            super().__init__()
            self.hidden, self.code = net["hidden"], net["code"]

        def forward(self, x: Tensor) -> ModelOutput:
            mean, logvar = self.code(torch.relu(self.hidden(x.flatten(1)))).chunk(2, 1)
            return ModelOutput(embedding=mean, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self, net: nn.ModuleDict):
            super().__init__()
            self.back, self.pixels = net["back"], net["pixels"]

        def forward(self, z: Tensor) -> ModelOutput:
            pixels = torch.sigmoid(self.pixels(torch.relu(self.back(z))))
            return ModelOutput(reconstruction=pixels.reshape(-1, 1, 28, 28))

    class Ticks(TrainingCallback):
        steps = 0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.start()

        def on_train_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.steps += 1
            if self.steps % work.chunk == 0:
                clock.mark(work.chunk * work.batch_size)

    whole = work.per_epoch * work.batch_size
    data = torch.from_numpy(read_digits(work.folder, "train")[:whole].copy())[:, None].float() / 255
    torch.manual_seed(0)
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=Z_DIM, reconstruction_loss="bce")
    net = dense_net()
    if work.net == "dense":
        model = VAE(config, encoder=Encoder(net), decoder=Decoder(net))
    else:
        encoder, decoder = Encoder_Conv_VAE_MNIST(config), Decoder_Conv_AE_MNIST(config)
        model = VAE(config, encoder=encoder, decoder=decoder)
    with tempfile.TemporaryDirectory() as folder:
        trainer = BaseTrainer(
            model,
            BaseDataset(data, torch.zeros(len(data))),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=work.batch_size,
                num_epochs=work.epochs,
                learning_rate=LEARNING_RATE,
                no_cuda=work.device == "cpu",
            ),
            callbacks=[Ticks()],
        )
        trainer.train()
    if work.net == "dense":
        return judged(net)
    model = copy.deepcopy(trainer.model).cpu().eval()
    model.decoder.layers[-1][-1] = torch.nn.Identity()  # its sigmoid: the judge takes logits

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        code = model.encoder(x)
        return code["embedding"], code["log_covariance"]

    return encode, lambda z: model.decoder(z)["reconstruction"]


# JAX.


def jax_loop(work: Work, clock: Clock, *, dtype: str) -> tuple[Any, Any]:
    """A jitted step with optax's Adam, data on the device, buffers donated.

    Step by step or a `lax.scan` over the stretch between two looks at the clock, whichever is
    faster here; finding that out is not counted. Stretches are of one length: the last steps of a
    training that is no multiple of it are left out. In bf16, weights, losses and Adam stay fp32.
    """
    os.environ.setdefault("JAX_PLATFORMS", work.device)
    import jax
    import jax.numpy as jnp
    import optax

    kind = {"fp32": jnp.float32, "bf16": jnp.bfloat16}[dtype]
    pictures = read_digits(work.folder, "train").reshape(-1, PIXELS)
    data = jnp.asarray(pictures.astype(np.float32) / 255)
    weights = _jax_weights()
    adam = optax.adam(LEARNING_RATE)

    def loss_of(weights: Any, x: Any, key: Any) -> Any:
        w = jax.tree.map(lambda each: each.astype(kind), weights)
        h = jax.nn.relu(x.astype(kind) @ w["hidden"][0] + w["hidden"][1])
        code = (h @ w["code"][0] + w["code"][1]).astype(jnp.float32)
        mean, logvar = jnp.split(code, 2, 1)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        h = jax.nn.relu(z.astype(kind) @ w["back"][0] + w["back"][1])
        logits = (h @ w["pixels"][0] + w["pixels"][1]).astype(jnp.float32)
        entropy = optax.sigmoid_binary_cross_entropy(logits, x).sum(1)
        return (entropy + 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum(1)).mean()

    def step(state: Any, data: Any, order: Any, i: Any) -> tuple[Any, Any]:
        weights, moments, key = state
        key, mine = jax.random.split(key)
        x = data[order[i]]
        loss, gradients = jax.value_and_grad(loss_of)(weights, x, mine)
        updates, moments = adam.update(gradients, moments, weights)
        return (optax.apply_updates(weights, updates), moments, key), loss

    def make(scanned: bool) -> Callable[[Any, Any, int], Any]:
        if not scanned:
            one = jax.jit(step, donate_argnums=0)

            def by_step(state: Any, order: Any, first: int) -> Any:
                for i in range(first, first + work.chunk):
                    state, loss = one(state, data, order, i)
                return jax.block_until_ready((state, loss))[0]

            return by_step

        @partial(jax.jit, donate_argnums=0)
        def many(state: Any, data: Any, order: Any, first: Any) -> Any:
            steps = first + jnp.arange(work.chunk)
            return jax.lax.scan(lambda s, i: step(s, data, order, i), state, steps)[0]

        return lambda state, order, first: jax.block_until_ready(many(state, data, order, first))

    def begin() -> Any:
        fresh = jax.tree.map(jnp.copy, weights)
        return fresh, adam.init(fresh), jax.random.key(0)

    def draw_order() -> Any:
        """The images of every step, `(steps, B)`, each epoch shuffled anew."""
        rng, used = np.random.default_rng(0), work.per_epoch * work.batch_size
        epochs = [rng.permutation(len(data))[:used] for _ in range(work.epochs)]
        return jnp.asarray(np.concatenate(epochs).reshape(work.steps, -1), jnp.int32)

    def seconds(scanned: bool) -> float:
        run, state, order = make(scanned), begin(), draw_order()
        state = run(state, order, 0)
        began = time.perf_counter()
        run(state, order, 0)
        return time.perf_counter() - began

    looked = time.time()
    scanned = seconds(True) < seconds(False)
    jax.clear_caches()
    clock.not_counted = time.time() - looked

    run, state = make(scanned), begin()
    clock.start()
    order = draw_order()
    for first in range(0, work.steps - work.chunk + 1, work.chunk):
        state = run(state, order, first)
        clock.mark(work.chunk * work.batch_size)
    return _judged_jax({name: [np.array(w) for w in pair] for name, pair in state[0].items()})


def _jax_weights() -> dict[str, Any]:
    """As `nn.Linear` draws them, without PyTorch."""
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    sizes = {
        "hidden": (PIXELS, HIDDEN),
        "code": (HIDDEN, 2 * Z_DIM),
        "back": (Z_DIM, HIDDEN),
        "pixels": (HIDDEN, PIXELS),
    }
    return {
        name: tuple(
            jnp.asarray(rng.uniform(-1, 1, shape) / math.sqrt(inner), jnp.float32)
            for shape in ((inner, outer), (outer,))
        )
        for name, (inner, outer) in sizes.items()
    }


def _judged_jax(weights: dict[str, list[np.ndarray]]) -> tuple[Any, Any]:
    import torch

    net = dense_net()
    for name, (weight, bias) in weights.items():
        net[name].weight.data = torch.from_numpy(weight.T.copy())
        net[name].bias.data = torch.from_numpy(bias.copy())
    return judged(net)


CONTENDERS = {
    "torch loop": Contender(torch_loop),
    "torch loop, compiled": Contender(
        partial(torch_loop, compiled=True), precision="auto", quick=False
    ),
    "torch tutorial": Contender(torch_tutorial, needs=("torchvision",)),
    "pythae": Contender(pythae_trainer, nets=("dense", "conv"), needs=("pythae",)),
    "jax fp32": Contender(partial(jax_loop, dtype="fp32"), needs=("jax", "optax")),
    "jax bf16": Contender(
        partial(jax_loop, dtype="bf16"), precision="bf16", needs=("jax", "optax")
    ),
}
