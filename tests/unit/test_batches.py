"""The images of an epoch, their order, and their augmentation."""

import numpy as np
import pytest
import torch

from optstate.checksums import write_checksums
from optstate.job import InputError
from optstate.training import batches as batches_module
from optstate.training.batches import (
    augment_images,
    copy_to_device,
    count_batches,
    iterate_batches,
    load_split,
    make_input,
    place_split,
    shuffle_indices,
    verify_arrays,
)


@pytest.fixture
def folder(tmp_path):
    """Twelve images of four pixels, each filled with its own number; labels 0, 0, ... 1, 1, ..."""
    images = np.zeros((12, 2, 2, 3), np.uint8) + np.arange(12, dtype=np.uint8)[:, None, None, None]
    np.save(tmp_path / "train_images.npy", images)
    np.save(tmp_path / "train_labels.npy", np.repeat([0, 1, 2], 4))
    return tmp_path


@pytest.mark.parametrize("name", batches_module.FILES)
def test_every_file_of_the_arrays_is_verified(tmp_path, name):
    files = [tmp_path / each for each in batches_module.FILES]
    for file in files:
        file.write_bytes(b"as it was made")
    write_checksums(tmp_path / "dataset.sha256", files)
    verify_arrays(tmp_path)
    (tmp_path / name).write_bytes(b"as it was mads")
    with pytest.raises(InputError, match=f"{tmp_path / name}: changed since it was made"):
        verify_arrays(tmp_path)


def test_a_split_uses_the_first_images_of_each_class(folder):
    assert load_split(folder, "train", 2).indices.tolist() == [0, 1, 4, 5, 8, 9]
    assert load_split(folder, "train", None).indices.tolist() == list(range(12))
    assert load_split(folder, "train", 100).indices.tolist() == list(range(12))


def test_the_order_depends_on_seed_and_epoch(folder):
    train = load_split(folder, "train", None)
    order = shuffle_indices(train, seed=0, epoch=1)
    assert sorted(order) == list(range(12))
    assert np.array_equal(order, shuffle_indices(train, seed=0, epoch=1))
    assert not np.array_equal(order, shuffle_indices(train, seed=1, epoch=1))
    assert not np.array_equal(order, shuffle_indices(train, seed=0, epoch=2))
    assert not np.array_equal(order, shuffle_indices(train, seed=0, epoch=1, stream=1))


def test_images_and_labels_of_a_batch_belong_together(folder):
    train = load_split(folder, "train", None)
    order = np.array([11, 0, 5, 6, 1])
    pairs = list(iterate_batches(train, order, 2, torch.device("cpu")))
    assert [images[:, 0, 0, 0].tolist() for images, _ in pairs] == [[11, 0], [5, 6], [1]]
    assert [labels.tolist() for _, labels in pairs] == [[2, 0], [1, 1], [0]]


def test_a_split_in_the_memory_of_a_device_gives_the_same_batches(folder):
    mapped = load_split(folder, "train", 2)
    held = copy_to_device(mapped, torch.device("cpu"))
    assert len(held) == len(held.images) == 6
    assert held.num_classes == 3
    pairs = [
        list(iterate_batches(images, shuffle_indices(images, 0, 1), 4, torch.device("cpu")))
        for images in (mapped, held)
    ]
    for one, other in zip(*pairs, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize(("free", "is_held"), [(289, True), (287, False)])
def test_a_split_that_takes_a_quarter_of_the_free_memory_is_held_on_the_gpu(
    folder, monkeypatch, free, is_held
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 1000))
    monkeypatch.setattr(batches_module, "copy_to_device", lambda *_: "held")
    mapped = load_split(folder, "train", 2)  # 6 images of 12 bytes
    assert place_split(mapped, torch.device("cuda")) is ("held" if is_held else mapped)
    assert place_split(mapped, torch.device("cpu")) is mapped


@pytest.mark.parametrize(("images", "steps"), [(100, 10), (101, 10), (102, 11), (1, 0), (9, 1)])
def test_a_last_batch_of_one_image_is_skipped(images, steps):
    assert count_batches(images, 10) == steps


def test_input_is_scaled_and_channels_last():
    images = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(2, 4, 4, 3)
    inputs = make_input(images)
    assert inputs.shape == (2, 3, 4, 4)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert inputs[1, 2, 3, 0] == images[1, 3, 0, 2] / 255


def test_the_memory_of_an_earlier_batch_is_reused():
    images = torch.randint(0, 255, (3, 4, 4, 3), dtype=torch.uint8)
    used = make_input(torch.zeros_like(images))
    again = make_input(images, buffer=used)
    assert again.data_ptr() == used.data_ptr()
    assert torch.equal(again, make_input(images))
    part = make_input(images[:2], buffer=used)
    assert part.data_ptr() != used.data_ptr()
    assert torch.equal(part, make_input(images[:2]))


class TestAugmentation:
    images = torch.randint(0, 255, (64, 16, 16, 3), dtype=torch.uint8)

    def test_none_changes_nothing(self):
        assert augment_images(self.images, "none", 0, 1) is self.images

    def test_flip_mirrors_about_half(self):
        result = augment_images(self.images, "flip", 0, 1)
        kept = (result == self.images).flatten(1).all(1)
        mirrored = (result == self.images.flip(2)).flatten(1).all(1)
        assert (kept | mirrored).all()
        assert 16 < mirrored.sum() < 48

    def test_crop_moves_by_at_most_an_eighth(self):
        result = augment_images(self.images, "crop_flip", 0, 1)
        inner = slice(2, 14)  # without reflected pixels
        for image, original in zip(result, self.images, strict=True):
            candidates = [
                source.roll((-down, -right), (0, 1))[inner, inner]
                for source in (original, original.flip(1))
                for down in range(-2, 3)
                for right in range(-2, 3)
            ]
            assert any(torch.equal(image[inner, inner], c) for c in candidates)
        assert len({tuple(image[0, 0].tolist()) for image in result}) > 32

    def test_augmentation_depends_only_on_seed_step_and_stream(self):
        first, second = (augment_images(self.images, "crop_flip", 7, 1) for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(first, augment_images(self.images, "crop_flip", 8, 1))
        assert not torch.equal(first, augment_images(self.images, "crop_flip", 7, 2))
        assert not torch.equal(first, augment_images(self.images, "crop_flip", 7, 1, stream=1))


class TestSubset:
    @pytest.fixture
    def folder(self, tmp_path):
        labels = np.repeat(np.arange(3), 50)
        for split in ("train", "valid"):
            np.save(tmp_path / f"{split}_images.npy", np.zeros((150, 2, 2, 3), np.uint8))
            np.save(tmp_path / f"{split}_labels.npy", labels)
        return tmp_path

    def test_a_seed_draws_images_of_each_class_in_their_order(self, folder):
        one, again, other = (load_split(folder, "train", 10, seed).indices for seed in (1, 1, 2))
        assert one.tolist() == sorted(one) == again.tolist() != other.tolist()
        assert np.bincount(one // 50).tolist() == [10, 10, 10]
        assert len({tuple(one[10 * k : 10 * k + 10] - 50 * k) for k in range(3)}) == 3

    def test_all_images_are_used_if_there_are_no_more(self, folder):
        for per_class in (None, 50, 100):
            assert load_split(folder, "train", per_class, 1).indices.tolist() == list(range(150))

    def test_the_draw_has_a_random_stream_of_its_own(self, folder):
        train = load_split(folder, "train", None)
        drawn = load_split(folder, "train", 10, 1).indices[10:20]
        in_epoch = [i for i in shuffle_indices(train, 1, 1) if 50 <= i < 100][:10]
        assert drawn.tolist() != sorted(in_epoch)
