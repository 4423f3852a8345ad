"""VMDK streams: decoded in one pass, compared with their own tables, refused with a reason."""

import io
import random
import zlib

import pytest
from archive_samples import Trickle, entry, good_document, manifest, ova
from vmdk_samples import (
    DIRECTORY,
    EOS,
    FOOTER,
    GRAIN,
    GRAIN_SECTORS,
    SECTOR,
    TABLE,
    descriptor,
    front,
    grain,
    header,
    marker,
    stream,
    stream_with_tables_first,
)

from pvccommon.errors import WrongInput
from pvccommon.images.limits import Limits
from pvccommon.images.ova import OvaReader
from pvccommon.images.streamoptimized import StreamOptimizedDecoder

MIB = 2**20


def content(number: int) -> bytes:
    return random.Random(number).randbytes(GRAIN // 2) * 2


def raw(data: bytes, most: int = 1 << 20) -> bytes:
    decoder = StreamOptimizedDecoder(Trickle(data, most))
    disk = bytearray(decoder.virtual_bytes)
    for offset, run in decoder.runs():
        disk[offset : offset + len(run)] = run
    return bytes(disk)


def runs(data: bytes) -> list[tuple[int, bytes]]:
    return [(offset, bytes(run)) for offset, run in StreamOptimizedDecoder(io.BytesIO(data)).runs()]


def expected(grains: dict[int, bytes], capacity: int) -> bytes:
    disk = bytearray(max(capacity * SECTOR, (max(grains, default=0) + 1) * GRAIN))
    for number, data in grains.items():
        disk[number * GRAIN : number * GRAIN + len(data)] = data
    return bytes(disk[: capacity * SECTOR])


SHAPES = {
    "empty": ({}, 2048),
    "one grain": ({0: content(0)}, GRAIN_SECTORS),
    "with holes": ({0: content(0), 3: content(3), 700: content(7)}, 1000 * GRAIN_SECTORS),
    "the last grain of each table": (
        {511: content(1), 512: content(2), 1023: content(3)},
        1024 * GRAIN_SECTORS,
    ),
    "part of a grain at the end": ({0: content(0), 1: content(1)}, GRAIN_SECTORS + 3),
    "a grain of zeros": ({0: bytes(GRAIN), 1: content(1)}, 10 * GRAIN_SECTORS),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_streams_become_raw_data(shape: str) -> None:
    grains, capacity = SHAPES[shape]
    assert raw(stream(grains, capacity)) == expected(grains, capacity)
    assert raw(stream_with_tables_first(grains, capacity)) == expected(grains, capacity)
    assert raw(stream_with_tables_first(grains, capacity, end=bytes(3 * SECTOR))) == expected(
        grains, capacity
    )


def test_the_stream_may_trickle() -> None:
    grains, capacity = SHAPES["with holes"]
    assert raw(stream(grains, capacity), most=333) == expected(grains, capacity)


def test_grains_of_zeros_are_not_given() -> None:
    grains, capacity = SHAPES["a grain of zeros"]
    assert [offset for offset, _ in StreamOptimizedDecoder(io.BytesIO(stream(grains, capacity))).runs()] == [
        GRAIN
    ]


def test_tables_may_say_that_grains_are_zeros() -> None:
    """Version 2 entries: 1 is a grain of zeros that takes no space."""
    data = stream({0: content(0)}, 10 * GRAIN_SECTORS, lie={5: 1}, flags=0x30005)
    assert raw(data) == expected({0: content(0)}, 10 * GRAIN_SECTORS)
    with pytest.raises(WrongInput, match="tables do not match"):
        raw(stream({0: content(0)}, 10 * GRAIN_SECTORS, lie={5: 1}))


def test_a_short_last_grain() -> None:
    capacity = GRAIN_SECTORS + 3
    place = front(capacity)
    short = content(1)[: 3 * SECTOR]
    parts = [grain(0, content(0)), grain(GRAIN_SECTORS, short)]
    lie = {0: len(place) // SECTOR, 1: (len(place) + len(parts[0])) // SECTOR}
    assert raw(stream({}, capacity, parts=parts, lie=lie)) == expected({0: content(0), 1: short}, capacity)


def test_the_size_is_known_before_the_data() -> None:
    source = Trickle(stream({n: content(n) for n in range(64)}, 64 * GRAIN_SECTORS), 4096)
    assert StreamOptimizedDecoder(source).virtual_bytes == 64 * GRAIN
    assert source.given <= 2 * MIB


def test_the_verdict_comes_with_the_end_of_the_runs() -> None:
    grains, capacity = SHAPES["with holes"]
    decoder = StreamOptimizedDecoder(io.BytesIO(stream(grains, capacity)[: -2 * SECTOR]))
    with pytest.raises(WrongInput, match="cut off"):
        for _ in decoder.runs():
            pass


def test_a_disk_goes_from_the_archive_to_raw_data_in_one_pass() -> None:
    grains, capacity = SHAPES["with holes"]
    disk = stream(grains, capacity)
    document = good_document(len(disk))
    lines = manifest({"web.ovf": document, "disk1.vmdk": disk})
    archive = OvaReader(Trickle(ova(disk=disk, before=[entry("web.mf", lines)]), 5000))
    for member in archive.members():
        decoder = StreamOptimizedDecoder(member)
        found = bytearray(decoder.virtual_bytes)
        for offset, run in decoder.runs():
            found[offset : offset + len(run)] = run
        assert bytes(found) == expected(grains, capacity)
    assert archive.finish().verified == {"web.ovf": "sha256", "disk1.vmdk": "sha256"}


ONE = {0: content(0)}
CAP = 1024 * GRAIN_SECTORS
GOOD = stream(ONE, CAP)
AT = len(front(CAP)) // SECTOR


def bad_descriptor(**fields: str) -> bytes:
    return stream(ONE, CAP, text=descriptor(CAP, **fields))  # type: ignore[arg-type]  # passed on


def bad_grain(*parts: bytes) -> bytes:
    return stream({}, CAP, parts=parts, lie={0: AT})


HOSTILE = {
    "nothing": (b"", "not a VMDK: wrong magic"),
    "qcow2": (b"QFI\xfb" + bytes(2000), "not a VMDK: wrong magic"),
    "descriptor only": (descriptor(CAP), "is only a descriptor, which points to other files"),
    "ESX extent": (b"COWD" + bytes(2000), "is an ESX server sparse extent"),
    "SESparse": (b"\xbe\xba\xfe\xca" + bytes(2000), "is an SESparse extent"),
    "version": (stream(ONE, CAP, version=9), "unknown version 9"),
    "transfer as text": (stream(ONE, CAP, line_ends=b"\n \n\0"), "damaged by a transfer as text"),
    "not a stream": (stream(ONE, CAP, flags=1), "is not streamOptimized"),
    "not compressed": (stream(ONE, CAP, flags=0x20001), "is not streamOptimized"),
    "unknown compression": (stream(ONE, CAP, compression=7), "unknown compression 7"),
    "small grains": (stream(ONE, CAP, grain=8), "a stream needs at least 128"),
    "odd grains": (stream(ONE, CAP, grain=130), "grains of 130 sectors"),
    "huge grains": (stream(ONE, CAP, grain=2**40), "a power of two from 8 to 2048"),
    "no grains": (stream(ONE, CAP, grain=0), "grains of 0 sectors"),
    "table size": (stream(ONE, CAP, entries=1024), "grain tables of 1024 entries"),
    "no capacity": (stream({}, 1).replace(header(1), header(0)), "has no capacity"),
    "huge capacity": (front(2**50), "its virtual size, 576460752303423488 bytes, is over"),
    "no descriptor": (stream(ONE, CAP, descriptor_at=0), "no embedded descriptor"),
    "huge descriptor": (stream(ONE, CAP, descriptor_size=2**40), "no embedded descriptor of a sensible size"),
    "descriptor behind the data": (stream(ONE, CAP, descriptor_at=500), "descriptor is not before its data"),
    "tables on the descriptor": (
        stream(ONE, CAP, directory=1, text=descriptor(CAP)),
        "the VMDK's descriptor and tables overlap",
    ),
    "other size": (stream(ONE, CAP, text=descriptor(CAP + 1)), "give different sizes"),
    "parent": (bad_descriptor(parent="12345678"), "names a parent image, '12345678'"),
    "parent by name": (
        bad_descriptor(more='parentFileNameHint="/etc/shadow"'),
        "names a parent image, '/etc/shadow'",
    ),
    "encrypted": (bad_descriptor(more='encryption.keySafe = "vmware:key/list"'), "the image is encrypted"),
    "flat extent": (bad_descriptor(extents='RW 8 FLAT "/etc/shadow" 0'), "of type FLAT, which points"),
    "VMFS extent": (bad_descriptor(extents='RW 8 VMFS "x-flat.vmdk"'), "extent of type VMFS"),
    "extent outside": (bad_descriptor(extents='RW 8 SPARSE "../x.vmdk"'), "'../x.vmdk' leads out of"),
    "absolute extent": (bad_descriptor(extents='RW 8 SPARSE "/dev/sda"'), "'/dev/sda' is an absolute path"),
    "extent without name": (bad_descriptor(extents="RW 8 SPARSE"), "'' is empty"),
    "extent inside": (bad_descriptor(extents='RW 8 SPARSE "x" 9'), "cannot be read from its beginning"),
    "no access": (bad_descriptor(extents='NOACCESS 8 SPARSE "x"'), "cannot be read from its beginning"),
    "two extents": (
        bad_descriptor(extents='RW 8 SPARSE "a.vmdk"\nRW 8 SPARSE "b.vmdk"'),
        "has 2 extents instead of one",
    ),
    "no extent": (bad_descriptor(extents=""), "has 0 extents instead of one"),
    "other type": (bad_descriptor(create_type="twoGbMaxExtentFlat"), "is of type 'twoGbMaxExtentFlat'"),
    "contradiction": (bad_descriptor(more="CID=0"), "gives 'cid' twice"),
    "unknown line": (bad_descriptor(more="what is this"), "has a line that is not known: 'what is this'"),
    "many lines": (bad_descriptor(more="\n" * 3000), "has more than 2000 lines"),
    "grain outside": (bad_grain(grain(CAP, content(0))), f"belongs to sector {CAP}, where no grain can be"),
    "grain between": (bad_grain(grain(5, content(0))), "belongs to sector 5, where no grain can be"),
    "grain twice": (bad_grain(grain(0, content(0)), grain(0, content(1))), "not in ascending order"),
    "backwards": (bad_grain(grain(128, content(0)), grain(0, content(1))), "not in ascending order"),
    "bomb": (bad_grain(grain(0, bytes(20 * MIB))), "inflates to more than its size"),
    "a byte too much": (bad_grain(grain(0, bytes(GRAIN + 1))), "inflates to more than its size"),
    "a byte too few": (bad_grain(grain(0, bytes(GRAIN - 1))), f"inflates to {GRAIN - 1} of {GRAIN} bytes"),
    "cut deflate": (
        bad_grain(grain(0, b"", compressed=zlib.compress(content(0))[:-1])),
        "a grain of the VMDK is damaged",
    ),
    "no deflate": (bad_grain(grain(0, b"", compressed=b"x" * 100)), "a grain of the VMDK is damaged"),
    "wrong checksum": (
        bad_grain(grain(0, b"", compressed=zlib.compress(content(0))[:-4] + b"abcd")),
        "a grain of the VMDK is damaged",
    ),
    "huge compressed size": (bad_grain(grain(0, b"", size=2**32 - 1)), "compressed bytes, more than can be"),
    "unknown marker": (bad_grain(marker(9, 1)), "a marker of the unknown type 9"),
    "long table": (bad_grain(marker(TABLE, 2**40)), "announces 1099511627776 sectors instead of 4"),
    "long directory": (bad_grain(marker(DIRECTORY, 9)), "announces 9 sectors instead of 1"),
    "many directories": (
        bad_grain(*[marker(DIRECTORY, 1, bytes(SECTOR))] * 3),
        "more than two grain directories",
    ),
    "many tables": (bad_grain(*[marker(TABLE, 4, bytes(2048))] * 9), "more grain tables than it can need"),
    "lying table": (stream(ONE, CAP, lie={1: 500}), "tables do not match its grains"),
    "table of less": (stream(ONE, CAP, lie={0: 0}), "tables do not match its grains"),
    "other place": (stream(ONE, CAP, lie={0: AT + 1}), "tables do not match its grains"),
    "no footer": (stream(ONE, CAP, footer=b""), "the VMDK has no footer; it is cut off"),
    "footer of another": (
        stream(ONE, CAP, footer=header(CAP + 128, directory=AT)),
        "footer and header give different sizes",
    ),
    "footer to nowhere": (stream(ONE, CAP, footer=header(CAP, directory=3)), "directory is not where"),
    "footer without magic": (stream(ONE, CAP, footer=bytes(SECTOR)), "wrong magic"),
    "two footers": (stream(ONE, CAP, end=marker(FOOTER, 1, header(CAP))), "follows the VMDK's footer"),
    "directory nowhere": (stream(ONE, CAP, directory=2**40), "directory is not where its header says"),
    "tables behind each other": (
        stream(ONE, CAP, directory=30, text=descriptor(CAP).ljust(29 * SECTOR, b"\0") + b"\1\0\0\0"),
        "not in an order that can be read in one pass",
    ),
    "data after the end": (GOOD + b"more", "there is data after the end of the VMDK stream"),
    "endless zeros": (GOOD + bytes(17 * MIB), "there is data after the end"),
    "end too early": (front(CAP) + marker(EOS, 0), "the VMDK has no footer; it is cut off"),
    "cut front": (GOOD[:5000], "ends inside its tables; it is cut off"),
    "cut grain": (GOOD[: AT * SECTOR + 1000], "ends inside a grain; it is cut off"),
    "cut marker": (GOOD[: AT * SECTOR + 8], "ends inside a marker; it is cut off"),
    "cut after a grain": (GOOD[: AT * SECTOR + len(grain(0, content(0)))], "no footer; it is cut off"),
    "cut, tables first": (
        stream_with_tables_first({0: content(0), 9: content(9)}, CAP)[: -len(grain(0, content(9)))],
        "tables do not match its grains; it is damaged or cut off",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_streams_are_refused_with_their_reason(name: str) -> None:
    data, reason = HOSTILE[name]
    with pytest.raises(WrongInput) as caught:
        raw_size_only(data)
    assert reason in caught.value.message


def raw_size_only(data: bytes) -> int:
    """Decodes without making the disk, which may be said to be huge."""
    return sum(len(run) for _, run in StreamOptimizedDecoder(io.BytesIO(data)).runs())


def test_the_limit_of_the_virtual_size_can_be_set() -> None:
    with pytest.raises(WrongInput, match="its virtual size, 67108864 bytes, is over 1048576"):
        StreamOptimizedDecoder(io.BytesIO(GOOD), Limits(virtual_bytes=MIB))


@pytest.mark.parametrize("layout", [stream, stream_with_tables_first])
def test_a_stream_cut_anywhere_is_refused(layout: object) -> None:
    assert callable(layout)
    data = layout({0: content(0), 600: content(6)}, CAP)
    for end in range(0, len(data) - SECTOR, 4001):
        with pytest.raises(WrongInput):
            raw_size_only(data[:end])


def test_damage_is_found_or_harmless() -> None:
    """Flip a bit anywhere: the data is the same, or the stream is refused; it never becomes other data."""
    data, dice = stream({0: content(0), 600: content(6)}, CAP), random.Random(5)
    wanted = runs(data)
    for _ in range(150):
        place = dice.randrange(len(data))
        damaged = data[:place] + bytes([data[place] ^ 1 << dice.randrange(8)]) + data[place + 1 :]
        try:
            assert runs(damaged) == wanted
        except WrongInput:
            continue


def test_random_data_after_a_good_header_is_refused() -> None:
    for number in range(50):
        with pytest.raises(WrongInput):
            raw_size_only(front(CAP) + random.Random(number).randbytes(4000))


def test_only_digests_of_tables_are_kept() -> None:
    decoder = StreamOptimizedDecoder(io.BytesIO(stream({n: bytes(GRAIN) for n in range(2048)}, 4096 * 128)))
    assert sum(len(run) for _, run in decoder.runs()) == 0
    assert decoder._tables.count == 4
