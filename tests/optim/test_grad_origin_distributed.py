"""Wrong and right habits where others put gradients in place: DDP's buckets, and fully_shard, in two processes."""

import pytest
import torch
from helpers.small_problems import cnn4, images_and_labels, losses_of
from torch import distributed, nn

from pyengm.optim import ENGM

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch has no gloo"
)
WORLD = 2


def ddp(**options):
    net = cnn4("gn", torch.float32)
    return nn.parallel.DistributedDataParallel(net, **options)


def sharded():
    from torch.distributed.fsdp import fully_shard

    net = cnn4("gn", torch.float32)
    fully_shard(net)
    return net


MODELS = {
    "ddp": ddp,
    "bucket views": lambda: ddp(gradient_as_bucket_view=True),
    "static graph": lambda: ddp(static_graph=True),
    "fully_shard": sharded,
}


def losses(model, rank):
    return losses_of(model, *images_and_labels(4, rank, torch.float32))


def try_habits(name, rank) -> list[str]:
    """What went wrong."""
    faults = []
    model = MODELS[name]()
    optimizer = ENGM(model.parameters(), alpha=0.5)

    def right():
        optimizer.zero_grad()
        optimizer.backward(losses(model, rank))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    def plain():
        optimizer.zero_grad()
        losses(model, rank).mean().backward()

    def own_then_plain():
        optimizer.zero_grad()
        optimizer.backward(losses(model, rank))
        losses(model, rank).mean().backward()

    def plain_then_own():
        plain()
        optimizer.backward(losses(model, rank))

    for wrong in (plain, own_then_plain, plain_then_own):
        right()
        right()
        wrong()
        try:
            optimizer.step()
        except RuntimeError as error:
            if "optimizer.backward(losses)" not in str(error):
                raise
        else:
            faults.append(f"{name}: {wrong.__name__}")
    right()
    return faults


def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    faults = [fault for name in MODELS for fault in try_habits(name, rank)]
    distributed.destroy_process_group()
    assert not faults, faults


def test_habits(tmp_path):
    torch.multiprocessing.spawn(work, args=(str(tmp_path),), nprocs=WORLD)
