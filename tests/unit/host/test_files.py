"""Durable files of the controller: several writers of one path, each with a draft of its own."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shoal.controller.host.io.files import write_durable

CONTENTS = [bytes([n]) * (1 << 18) for n in range(8)]


def test_of_many_writers_of_one_path_the_last_wins_and_no_content_is_mixed(tmp_path: Path) -> None:
    path = tmp_path / "broker.conf"

    def write(data: bytes) -> bytes:
        write_durable(path, data, sync_parent=False)
        return path.read_bytes()

    with ThreadPoolExecutor(len(CONTENTS)) as pool:
        seen = set(pool.map(write, CONTENTS * 8))
    assert seen <= set(CONTENTS)
    assert [found.name for found in tmp_path.iterdir()] == ["broker.conf"]
