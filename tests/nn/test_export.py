"""Folders of delivered models."""

import os

import torch
from safetensors.torch import save_file

from metaopt.nn.export import new_folder


class Card:
    def check(self):
        return


def test_weights_may_be_read_by_whoever_may_read_the_folder(tmp_path):
    before = os.umask(0o022)
    try:
        with new_folder(tmp_path / "model", Card()) as folder:
            save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    finally:
        os.umask(before)
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644
