"""A folder of images: what a camera or an inspection machine drops there is a frame each."""

import logging
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from shoal.agent.feeds.frames import Frame, Quality
from shoal.agent.feeds.io.connection import Connecting
from shoal.agent.feeds.io.interface import Context, Emit, ServerSettings, Touched
from shoal.agent.host.faults import Fault
from shoal.agent.host.optional_libraries import needs
from shoal.agent.serving.io.row_table import stamp
from shoal.errors import InputError, LinkError, SettingError
from shoal.pipeline import Image

#: Files whose stamps are remembered.
SEEN = 100_000
_log = logging.getLogger(__name__)
Stamp = tuple[int, int]


class ImagesSettings(ServerSettings, frozen=True, kw_only=True):
    """Images in a folder, each a tensor of pixels 0 to 255. Needs shoal[agent-images].

    path           of the folder, seen from the agent's folder
    pattern        of the names that are images; never one that begins with a dot, as a file does
                   that is being written
    width, height  to which they are resized, for a release whose pipeline does not say; 0 where
                   it does
    mode           likewise: "L" for grey, "RGB" for colour
    layout         likewise: "hwc" or "chw", the order of height, width and channel in the tensor
    every_s        seconds between two looks
    settle_s       seconds since its last change after which a file that cannot be read is bad
    after          what becomes of a file that was read: "keep", "delete" or "move", to the folder
                   "done" in it
    existing       with "keep", whether files that are there at the start are read too
    asset          what the camera watches
    """

    path: str
    pattern: str = "*"
    width: Annotated[int, msgspec.Meta(ge=0, le=8_192)] = 0
    height: Annotated[int, msgspec.Meta(ge=0, le=8_192)] = 0
    mode: Literal["L", "RGB"] = "RGB"
    layout: Literal["hwc", "chw"] = "chw"
    every_s: Annotated[float, msgspec.Meta(gt=0)] = 0.5
    settle_s: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    after: Literal["keep", "delete", "move"] = "keep"
    existing: bool = False
    asset: str = ""

    def touches(self) -> Touched:
        """It looks into its folder, and changes it when images do not stay there."""
        return Touched(reads=(self.path,), writes=() if self.after == "keep" else (self.path,))


class Images(Connecting):
    """Looks into the folder again and again; a polled folder may also be a share on a network."""

    Settings = ImagesSettings

    def __init__(self, settings: ImagesSettings, context: Context, emit: Emit) -> None:
        super().__init__(context, settings.retry_s)
        self._settings, self._emit = settings, emit
        self._image = needs("PIL.Image")
        self._folder = context.folder / settings.path
        if "/" in settings.pattern:
            raise SettingError(f"agent.toml: sources.{context.name}.pattern has a /", "*.jpg")
        if (settings.width > 0) != (settings.height > 0):
            raise SettingError(
                f"agent.toml: sources.{context.name} has one of width and height", "give both"
            )
        self._own, self._told = _own(settings), ""
        self._seen: dict[str, Stamp] = {}
        self._begun = False

    def serve(self, stopping: threading.Event) -> None:
        """Look until `stopping`; LinkError when the folder is not there."""
        found = self._found()
        self._image_now()
        if not self._begun and self._settings.after == "keep" and not self._settings.existing:
            self._seen = {path.name: known for known, path in found}
        self._begun = True
        self.tally.came_up()
        while not stopping.is_set():
            for known, path in self._found():
                if stopping.is_set():
                    return
                self._take(path, known)
            stopping.wait(self._settings.every_s)

    def _found(self) -> list[tuple[Stamp, Path]]:
        """Files not yet read, the oldest first."""
        if not self._folder.is_dir():
            raise LinkError(f"{self._folder} is no folder", "is the share mounted?")
        named = self._folder.glob(self._settings.pattern)
        paths = [path for path in named if path.name[:1] != "." and path.is_file()]
        stamped = [(stamp(path), path) for path in paths]
        if len(self._seen) > SEEN:
            names = {path.name for path in paths}
            self._seen = {name: known for name, known in self._seen.items() if name in names}
        return sorted(x for x in stamped if x[0] != (0, 0) and self._seen.get(x[1].name) != x[0])

    def _image_now(self) -> Image:
        """What the release that serves says, which is signed; else what agent.toml says."""
        signed = self.context.image()
        made = signed or self._own
        if made is None:
            raise LinkError(
                "nobody says how large images are",
                "roll out a release whose pipeline has an image, or set width and height",
            )
        self._compare(signed)
        return made

    def _compare(self, signed: Image | None) -> None:
        """Say, once, that agent.toml says what belongs to the release."""
        text = ""
        if self._own is not None and signed is None:
            text = (
                f"agent.toml makes images {self._own}, and nobody has signed that; "
                "declare it with the model: shoal model import --pipeline"
            )
        elif self._own not in (None, signed):
            text = (
                f"agent.toml says {self._own}, the release {signed}, which is signed and holds; "
                "take width, height, mode and layout out of agent.toml"
            )
        if text and text != self._told:
            self.context.fault(Fault("unsigned-image", f"{self.context.name}: {text}", "info"))
        self._told = text

    def _take(self, path: Path, known: Stamp) -> None:
        time_s = known[0] / 1e9
        try:
            frame = Frame(time_s, (), self._pixels(path), asset=self._settings.asset)
        except (OSError, ValueError, SyntaxError, InputError) as error:
            if self.context.wall() - time_s < self._settings.settle_s:
                return  # perhaps it is still being written: the next look tells
            self.tally.bad += 1
            self.context.fault(Fault("bad-image", f"{self.context.name}: {path.name}: {error}"))
            frame = Frame(time_s, (), np.empty((0, 0)), Quality.BAD, self._settings.asset)
        self._seen[path.name] = known
        self.tally.gave(frame)
        self._emit(frame)
        self._put_away(path)

    def _pixels(self, path: Path) -> Any:
        """The image as uint8 (1, height · width · channels), in the layout that was asked for."""
        wanted = self._image_now()
        size = (wanted.width, wanted.height)
        try:
            with self._image.open(path) as image:
                image.draft(wanted.mode, size)  # a JPEG is decoded small at once
                small = image.convert(wanted.mode).resize(size, self._image.Resampling.BILINEAR)
        except self._image.DecompressionBombError as error:
            raise InputError(f"{path.name}: {error}") from error
        pixels = np.asarray(small, np.uint8)
        if pixels.ndim == 3 and wanted.layout == "chw":
            pixels = pixels.transpose(2, 0, 1)
        return pixels.reshape(1, -1)

    def _put_away(self, path: Path) -> None:
        try:
            if self._settings.after == "delete":
                path.unlink()
            elif self._settings.after == "move":
                done = self._folder / "done"
                done.mkdir(exist_ok=True)
                path.replace(done / path.name)
        except OSError as error:
            what = f"{self.context.name}: {path.name} stays: {error.strerror}"
            self.context.fault(Fault("storage", what))


def _own(settings: ImagesSettings) -> Image | None:
    """What agent.toml says; None when it leaves it to the release."""
    if not settings.width:
        return None
    return Image(
        width=settings.width, height=settings.height, mode=settings.mode, layout=settings.layout
    )
