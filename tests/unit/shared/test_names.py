"""Names that go into topics, paths and certificates, and the profiles that boards match."""

import msgspec
import pytest

from shoal import manifest, topics
from shoal.enrolment import parse_token
from shoal.errors import AbsentError, SettingError, WireError
from shoal.profile import detect, load_profiles, load_recipes, profile


@pytest.mark.parametrize("name", ["a", "cam-1", "0", "x" * 63, "a--b"])
def test_a_device_may_be_named(name: str) -> None:
    assert topics.check_device(name) == name
    assert topics.parse_up(topics.up(name, "window")) == (name, "window")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Cam",
        "a.b",
        "a/b",
        "+",
        "#",
        "-a",
        "a-",
        "x" * 64,
        "fleet",
        "controller",
        "ä",
        "a b",
        "a\n",
    ],
)
def test_a_device_may_not_be_named(name: str) -> None:
    with pytest.raises(SettingError):
        topics.check_device(name)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "shoal/v1/cam-1/up",
        "shoal/v1/cam-1/down/ack",
        "shoal/v2/cam-1/up/window",
        "shoal/v1/cam-1/up/gossip",
        "shoal/v1/+/up/window",
        "shoal/v1/cam-1/up/window/x",
        "other/v1/cam-1/up/window",
        "x" * 70_000,
    ],
)
def test_a_foreign_topic_is_a_wire_error(topic: str) -> None:
    with pytest.raises(WireError):
        topics.parse_up(topic)


@pytest.mark.parametrize(
    "text", ["lot-codes", "lot-codes@", "@3", "lot-codes@x", "../x@3", "a@-1", "a@" + "9" * 16]
)
def test_what_is_no_release_is_refused(text: str) -> None:
    with pytest.raises(SettingError):
        manifest.parse_release(text)


def test_a_release_is_a_model_and_a_version() -> None:
    assert manifest.parse_release("lot-codes@3") == ("lot-codes", 3)


@pytest.mark.parametrize("text", ["", "sj1.a.b.c", "sj1.abcdefgh." + "s" * 30, "sk1.x"])
def test_what_is_no_join_token_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_token(text)
    assert not text or text not in str(caught.value)


BOARDS = {
    "rpi5": {"arch": "aarch64", "cpu_part": "0xd0b"},
    "rpi4": {"arch": "aarch64", "cpu_part": "0xd08"},
    "rpi3-aarch64": {"arch": "aarch64", "cpu_part": "0xd03", "ram_mb": 900},
    "rpi3-armv7": {"arch": "armv7l"},
    "jetson-orin": {"arch": "aarch64", "soc": "tegra234", "cpu_part": "0xd42"},
    "x86-vnni": {"arch": "x86_64", "flags": ["avx2", "avx512_vnni"]},
    "x86-avx2": {"arch": "x86_64", "flags": ["avx2"]},
    "generic": {"arch": "riscv64"},
}


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_of_the_profile_that_its_facts_fit(name: str) -> None:
    assert detect(BOARDS[name]).name == name


def test_every_profile_is_matched_by_some_board_and_has_known_variants() -> None:
    assert set(BOARDS) == set(load_profiles())
    recipes = load_recipes()
    for one in load_profiles().values():
        assert set(one.variants) <= set(recipes)
        assert bool(one.variants) != bool(one.unsupported)
        assert one.budget.p99_ms > 0


def test_an_unsupported_board_gets_a_reason() -> None:
    assert "64-bit" in profile("rpi3-armv7").unsupported


def test_an_unknown_profile_names_those_there_are() -> None:
    with pytest.raises(AbsentError, match="rpi4"):
        profile("rpi9")


def test_profiles_are_frozen() -> None:
    with pytest.raises(AttributeError):
        profile("rpi4").name = "x"  # type: ignore[misc]
    assert msgspec.structs.asdict(profile("rpi4"))["name"] == "rpi4"
