"""What is found in hashes: the rule, whatever the order, the parts and the processes."""

import dataclasses
import functools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from input_pipeline.duplicates import (
    command,
    dropped,
    finding,
    hamming,
    hashing,
    search,
    signatures,
)
from input_pipeline.images import crops
from input_pipeline.workers import run_all
from tests.input_pipeline.duplicates.duplicates_data import (
    QUIET,
    SETTINGS,
    copies,
    encoded,
    find,
    hash_images,
    in_order,
    picture,
)


@functools.cache
def signed(data):
    pixels = crops.decode(data)
    small = signatures.thumbnail(pixels).reshape(1, -1)
    return pixels.shape, small, signatures.contrast(small), signatures.frequencies(pixels)


def alike(one, other, settings):
    """By the definition, of two images' bytes."""
    _, *both = zip(signed(one), signed(other))
    small, contrasts, hashes = both
    if min(contrasts) < signatures.FLAT:
        return False
    ours, theirs = hashes
    turned = signatures.mirrored(small[1])
    packed = [np.frombuffer(each.detail, np.uint64)[None] for each in (ours, theirs)]
    ways = [(0, 0, small[1]), (0, 1, turned), (1, 0, turned)]
    return any(
        (ours[a] ^ theirs[b]).bit_count() <= settings.distance
        and signatures.details(*packed, np.array([a != b]))[0] <= settings.detail
        and signatures.differences(small[0], thumbnail, contrasts)[0] <= settings.difference
        for a, b, thumbnail in ways[: 1 + 2 * settings.mirrored]
    )


def expected(train, test, settings=SETTINGS):
    """{id: (reason, match)} by the rule, the best images first, each with each that is kept."""

    def order(item):
        is_train, id_, data = item
        height, width, _ = signed(data)[0]
        return is_train, -width * height, -len(data), signatures.digest(data), id_

    images = [(False, *item) for item in test.items()] + [(True, *item) for item in train.items()]
    images.sort(key=order)
    found = {}
    for place, (is_train, id_, data) in enumerate(images):
        if not is_train:
            continue
        same = next(item for item in images if item[2] == data)
        if same[1] != id_ or not same[0]:
            copied = "exact duplicate" if same[0] else "contaminated"
            found[id_] = found.get(same[1], (copied, same[1])) if same[0] else (copied, same[1])
            continue
        for other in images[:place]:
            is_kept = not other[0] or other[1] not in found
            if is_kept and alike(data, other[2], settings):
                found[id_] = "near duplicate" if other[0] else "contaminated", other[1]
                break
    return found


def corpus(seed):
    """Training and test images with copies of all kinds among and between them, and blank ones."""
    rng = np.random.default_rng(seed)
    images = {}
    for n in range(12):
        pixels = picture(1000 * seed + n)
        images[f"{n:02d}"] = encoded(pixels)
        for kind, data in copies(pixels).items():
            if rng.random() < 0.5:
                images[f"{n:02d} {kind}"] = data
        if rng.random() < 0.3:
            images[f"{n:02d} again"] = images[f"{n:02d}"]
        shades = np.clip(pixels + rng.integers(-30, 30, (1, 1, 3)), 0, 255).astype(np.uint8)
        images[f"{n:02d} shaded"] = encoded(shades)
    for n in range(3):
        images[f"blank {n}"] = encoded(picture(0) * 0 + 100 + 60 * (n // 2))
    is_test = {id_: rng.random() < 0.2 for id_ in images}
    return [{id_: data for id_, data in images.items() if is_test[id_] == t} for t in (False, True)]


def shuffled(images, seed):
    ids = sorted(images)
    np.random.default_rng(seed).shuffle(ids)
    return {id_: images[id_] for id_ in ids}


def force(monkeypatch, equal, entries=1 << 24):
    """Has the search cut hashes into so many blocks, and look at so many entries in a task."""

    def choices(count, distance, free=64):
        chosen = hamming.itertools.combinations(range(distance + equal), equal)
        return [hamming.Choice(free, distance + equal, blocks) for blocks in chosen]

    monkeypatch.setattr(search.hamming, "choices", choices)
    plan = functools.partial(search.plan, entries_per_task=entries)
    monkeypatch.setattr(finding.search, "plan", plan)


@pytest.mark.parametrize("seed", range(3))
def test_the_list_is_the_rule_in_any_order_and_parts(tmp_path, monkeypatch, seed):
    train, test = corpus(seed)
    want = expected(train, test)
    assert {reason for reason, _ in want.values()} == {
        "exact duplicate", "near duplicate", "contaminated",
    }  # fmt: skip
    files = set()
    for number, (equal, entries) in enumerate(((0, 1 << 24), (1, 20), (3, 30))):
        with monkeypatch.context() as patch:
            force(patch, equal, entries)
            folder = tmp_path / str(number)
            hashes = [hash_images(folder / "train", shuffled(train, number), parts=number + 1)]
            against = [hash_images(folder / "test", shuffled(test, number), parts=number + 1)]
            rows, data = find(folder / "drop.parquet", hashes, against)
        files.add(data)
        assert {id_: (reason, match) for id_, reason, match, _ in rows} == want
        assert len(rows) == len(want)
        assert all(bits == 0 or reason != "exact duplicate" for _, reason, _, bits in rows)
        assert not (folder / "drop.parquet.parts").exists()
    assert len(files) == 1


def test_processes_and_the_order_of_data_sets_change_nothing(tmp_path):
    train, test = corpus(7)
    ids = sorted(train)
    for name, part in (("a", ids[::3]), ("b", ids[1::3]), ("c", ids[2::3])):
        hash_images(tmp_path / name, {id_: train[id_] for id_ in part}, parts=2)
    hash_images(tmp_path / "test", test)
    files = set()
    for order, workers in (("abc", 1), ("cab", 2)):
        run = functools.partial(_with_workers, workers)
        rows, data = find(
            tmp_path / f"{order}.parquet",
            [tmp_path / name for name in order],
            [tmp_path / "test"],
            run=run,
        )
        files.add(data)
    assert len(files) == 1
    assert {id_: (reason, match) for id_, reason, match, _ in rows} == expected(train, test)


def _with_workers(workers, function, tasks, unit, console):
    return run_all(function, tasks, workers, unit, console)


def test_without_mirror_images(tmp_path):
    pixels = picture(1)
    images = {"a": encoded(pixels), "b": copies(pixels)["mirrored"]}
    hashes = [hash_images(tmp_path / "h", images)]
    assert [row[0] for row in find(tmp_path / "a.parquet", hashes)[0]] == ["b"]
    plain = dataclasses.replace(SETTINGS, mirrored=False)
    assert find(tmp_path / "b.parquet", hashes, settings=plain)[0] == []


def test_a_record_of_two_data_sets_stays_in_one(tmp_path):
    data = encoded(picture(1))
    one = hash_images(tmp_path / "one", {"a": data, "b": data})
    two = hash_images(tmp_path / "two", {"a": data})
    find(tmp_path / "drop.parquet", [two, one])
    rows = parquet.read_table(tmp_path / "drop.parquet").to_pylist()
    assert [(row["data"], row["id"], row["match_data"], row["match"]) for row in rows] == [
        ("one", "b", "one", "a"),
        ("two", "a", "one", "a"),
    ]


def test_a_record_twice_in_one_data_set_is_not_listed_but_told(tmp_path, capsys):
    data = encoded(picture(1))
    read = functools.partial(iter, [("a", data), ("a", data), ("b", encoded(picture(2)))])
    part = hashing.Part("images", "part.parquet", {}, 1, read)
    hashing.write([part], tmp_path / "h", in_order, "images", QUIET)
    words = ["find", "--hashes", str(tmp_path / "h"), "--output", str(tmp_path / "d.parquet")]
    assert command.main(words) == 0
    assert len(parquet.read_table(tmp_path / "d.parquet")) == 0
    assert "twice in one data set: not listed │ 1" in capsys.readouterr().out


def bands(folder, hashes, tests=0, wide=1):
    """Pairs by rank and what is kept, of images that are told apart by their hash alone."""
    folder.mkdir()
    arrays = search.Arrays(folder, len(hashes))
    arrays.hash[:] = hashes
    arrays.mirrored_hash[:] = 0
    arrays.detail[:] = 0
    arrays.thumbnail[:] = 0
    arrays.contrast[:] = 0
    arrays.rank[:] = np.arange(len(hashes))
    arrays.flush()
    settings = search.Settings(wide, 0, 0.0, mirrored=False)
    [task] = search.plan(1, settings)
    search.search(task, folder, tests, settings)
    pairs = np.load(folder / task.name)
    kept = finding._kept_matches(search.best_pairs(pairs), len(hashes))
    return pairs, {n: m for n, m in enumerate(kept.tolist()) if m != search.NOBODY}


def test_no_image_goes_without_one_that_stays(tmp_path):
    """A chain in which each is near to the next: whom a dropped image would drop, stays."""
    chain = [0b0, 0b1, 0b11, 0b111, 0b1111]
    assert bands(tmp_path / "a", chain)[1] == {1: 0, 3: 2}
    assert bands(tmp_path / "b", chain, tests=1)[1] == {1: 0, 3: 2}
    # Each of the test images, ranks 0 and 1, stays, and is no near copy of the other.
    assert bands(tmp_path / "c", chain, tests=2)[1] == {2: 1, 4: 3}


@pytest.mark.parametrize("seed", range(3))
def test_what_is_kept_is_what_plain_greedy_keeps(tmp_path, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 1 << 9, 200).astype(np.uint64)
    want = {}
    for mine in range(20, len(hashes)):
        for other in range(mine):
            if other not in want and (hashes[mine] ^ hashes[other]).bit_count() <= 1:
                want[mine] = other
                break
    monkeypatch.setattr(search, "_PAIRS_HELD", 10)
    assert bands(tmp_path / "a", hashes, tests=20)[1] == want


def test_of_a_crowd_the_best_neighbours_of_each_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "MOST_ALIKE", 4)
    monkeypatch.setattr(search, "_PAIRS_HELD", 50)
    pairs, kept = bands(tmp_path / "a", np.arange(64, dtype=np.uint64), wide=6)
    mine, better = search.ranks(pairs)
    assert {n: better[mine == n].tolist() for n in range(64)} == {
        n: list(range(min(n, 4))) for n in range(64)
    }
    assert kept == dict.fromkeys(range(1, 64), 0)


def test_a_task_is_many_choices_for_one_reading():
    """At the size of a corpus."""
    tasks = search.plan(100_000_000, SETTINGS)
    assert len(tasks) < 1000
    choices = hamming.choices(200_000_000, SETTINGS.distance)
    assert sorted({c.equal for t in tasks for c in t.choices}) == [c.equal for c in choices]
    assert {(t.part, t.parts) for t in tasks} == {(n, 12) for n in range(12)}


def test_ids_have_room_for_more_than_2_gb(tmp_path):
    folder = hash_images(tmp_path / "h", {"a": encoded(picture(1))})
    data = [finding.open_hashes(folder, False)]
    assert finding._ids(data, np.arange(1)).type == pa.large_string()
    find(tmp_path / "drop.parquet", [folder])
    assert parquet.read_schema(tmp_path / "drop.parquet").field("id").type == pa.large_string()


def test_a_copy_of_a_contaminated_image_is_contaminated(tmp_path):
    pixels = picture(1)
    copy = encoded(pixels, 50)
    train = hash_images(tmp_path / "train", {"a": copy, "b": copy})
    test = hash_images(tmp_path / "test", {"t": encoded(pixels)})
    rows, _ = find(tmp_path / "drop.parquet", [train], [test])
    assert [row[:3] for row in rows] == [("a", "contaminated", "t"), ("b", "contaminated", "t")]


def test_a_test_image_is_kept_out_however_poor_it_is(tmp_path):
    pixels = picture(1, (96, 128))
    train = hash_images(tmp_path / "train", {"large": encoded(pixels), "far": encoded(picture(2))})
    test = hash_images(tmp_path / "test", {"small": encoded(pixels[::2, ::2], 50)})
    rows, _ = find(tmp_path / "drop.parquet", [train], [test])
    assert [row[:3] for row in rows] == [("large", "contaminated", "small")]


def test_many_of_one_hash_are_no_more_than_many(tmp_path, monkeypatch):
    """Images of one hash, of which half are copies."""
    count, most = 4000, 50
    monkeypatch.setattr(search, "MOST_ALIKE", most)
    folder = tmp_path / "arrays"
    folder.mkdir()
    arrays = search.Arrays(folder, count)
    rng = np.random.default_rng(0)
    arrays.hash[:] = 5
    arrays.mirrored_hash[:] = 2**64 - 1
    arrays.detail[:] = 0
    arrays.thumbnail[:] = rng.integers(0, 256, arrays.thumbnail.shape, np.uint8)
    arrays.thumbnail[::2] = arrays.thumbnail[0]
    arrays.contrast[:] = signatures.contrast(arrays.thumbnail[:])
    arrays.rank[:] = np.arange(count)
    arrays.flush()
    seen = []
    look = search._Pairs._look
    monkeypatch.setattr(
        search._Pairs, "_look", lambda self, a, b: (seen.append(len(a)), look(self, a, b))[1]
    )
    [task] = search.plan(1, SETTINGS)
    search.search(task, folder, 0, SETTINGS)
    kept = finding._kept_matches(np.load(folder / task.name), count)
    assert np.flatnonzero(kept != search.NOBODY).tolist() == list(range(2, count, 2))
    assert not kept[2::2].any()
    assert sum(seen) < count * most


def test_killed_and_given_again(tmp_path, monkeypatch):
    force(monkeypatch, 1)  # nine tasks
    train, _ = corpus(3)
    hashes = [hash_images(tmp_path / "h", train)]
    whole = find(tmp_path / "whole.parquet", hashes)[1]

    def killed(function, tasks, unit, console):
        for number, (label, arguments) in enumerate(tasks):
            if number == 5:
                raise KeyboardInterrupt
            yield label, function(*arguments)

    done = []

    def counting(function, tasks, unit, console):
        done.extend(tasks)
        return in_order(function, tasks, unit, console)

    output = tmp_path / "drop.parquet"
    with pytest.raises(KeyboardInterrupt):
        find(output, hashes, run=killed)
    assert not output.exists()
    assert find(output, hashes, run=counting)[1] == whole
    assert len(done) == 4
    # Of another distance nothing can be kept.
    with pytest.raises(KeyboardInterrupt):
        find(output, hashes, run=killed)
    done.clear()
    find(output, hashes, settings=dataclasses.replace(SETTINGS, difference=0.1), run=counting)
    assert len(done) == 9


def test_errors_are_one_line(tmp_path, capsys):
    hashes = hash_images(tmp_path / "h", {"a": encoded(picture(0))})

    def error(*words, output="drop.parquet"):
        words = ["find", *map(str, words), "--output", str(tmp_path / output), "--workers", "1"]
        assert command.main(words) == 1
        [line] = capsys.readouterr().err.splitlines()
        return line

    assert "make or finish the hashes" in error("--hashes", tmp_path)
    assert "called 'h'" in error("--hashes", hashes, "--against", hashes)
    assert "ends in .parquet" in error("--hashes", hashes, output="drop.csv")
    assert "at most 64" in error("--hashes", hashes, "--distance", 65)
    assert "--difference must be" in error("--hashes", hashes, "--difference", -1)
    (hashes / "part-0.parquet").write_bytes(b"half")
    assert "part-0.parquet is damaged" in error("--hashes", hashes)
    (hashes / "hashes.json").write_text("{")
    assert "is damaged" in error("--hashes", hashes)


def test_the_command_writes_a_list_and_says_what_is_in_it(tmp_path, capsys):
    train, test = corpus(5)
    hash_images(tmp_path / "train", train)
    hash_images(tmp_path / "test", test)
    words = ["find", "--hashes", str(tmp_path / "train"), "--against", str(tmp_path / "test")]
    assert command.main([*words, "--output", str(tmp_path / "out" / "drop.parquet")]) == 0
    told = capsys.readouterr().out
    want = expected(train, test)
    for reason in ("exact duplicate", "near duplicate", "contaminated"):
        count = sum(found == reason for found, _ in want.values())
        assert f"dropped: {reason}" in told and f" {count} " in told
    table = parquet.read_table(tmp_path / "out" / "drop.parquet")
    assert table.schema.equals(dropped.SCHEMA)
    assert set(table["data"].to_pylist()) == {"train"}
    assert set(table["match_data"].to_pylist()) == {"train", "test"}
