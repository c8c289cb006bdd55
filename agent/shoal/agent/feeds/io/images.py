"""Source `images`: each image file in a folder, from a camera for example, is a frame."""

import logging
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from shoal.agent.feeds.frames import Frame, Quality
from shoal.agent.feeds.io.connection import ReconnectingFeed
from shoal.agent.feeds.io.interface import Context, Emit, ServerSettings, Touched
from shoal.agent.host.faults import Fault
from shoal.agent.host.optional_libraries import needs
from shoal.agent.serving.io.row_table import stamp
from shoal.errors import InputError, LinkError, SettingError
from shoal.pipeline import Image

#: Most files whose stamps are kept.
SEEN = 100_000
_log = logging.getLogger(__name__)
Stamp = tuple[int, int]


class ImagesSettings(ServerSettings, frozen=True, kw_only=True):
    """Images in a folder, each a tensor of pixels 0 to 255. Needs shoal[agent-images].

    path           of the folder, relative to the agent's folder
    pattern        of image file names; names that begin with a dot are ignored: files being
                   written
    width, height  size to resize to, for a release whose pipeline has none; 0 where it has one
    mode           likewise: "L" for grey, "RGB" for colour
    layout         likewise: "hwc" or "chw", the order of height, width and channel in the tensor
    every_s        seconds between two scans of the folder
    settle_s       seconds after its last change until an unreadable file counts as bad
    after          action after reading: "keep", "delete" or "move" to the subfolder "done"
    existing       with "keep", whether files present at the start are read too
    asset          name of what the camera observes
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
        """Its folder: read, and written unless images are kept."""
        return Touched(reads=(self.path,), writes=() if self.after == "keep" else (self.path,))


class Images(ReconnectingFeed):
    """Scans the folder periodically, so that it may be a network share."""

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
        self._own, self._warned = _own(settings), ""
        self._seen: dict[str, Stamp] = {}
        self._begun = False

    def serve(self, stopping: threading.Event) -> None:
        """Scan until `stopping`; LinkError when the folder does not exist."""
        found = self._found()
        self._image_spec()
        if not self._begun and self._settings.after == "keep" and not self._settings.existing:
            self._seen = {path.name: known for known, path in found}
        self._begun = True
        self.tally.came_up()
        while not stopping.is_set():
            for known, path in self._found():
                if stopping.is_set():
                    return
                self._read(path, known)
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

    def _image_spec(self) -> Image:
        """Size and layout in the signed release; else those in agent.toml."""
        signed = self.context.image()
        image = signed or self._own
        if image is None:
            raise LinkError(
                "the size of the images is unknown",
                "roll out a release whose pipeline has an image, or set width and height",
            )
        self._compare(signed)
        return image

    def _compare(self, signed: Image | None) -> None:
        """Report, once, image settings in agent.toml that belong to the release."""
        text = ""
        if self._own is not None and signed is None:
            text = (
                f"agent.toml sets images of {self._own}, which is not signed; "
                "declare it with the model: shoal model import --pipeline"
            )
        elif self._own not in (None, signed):
            text = (
                f"agent.toml sets {self._own}, the signed release {signed}, which is used; "
                "remove width, height, mode and layout from agent.toml"
            )
        if text and text != self._warned:
            self.context.fault(Fault("unsigned-image", f"{self.context.name}: {text}", "info"))
        self._warned = text

    def _read(self, path: Path, known: Stamp) -> None:
        time_s = known[0] / 1e9
        try:
            frame = Frame(time_s, (), self._pixels(path), asset=self._settings.asset)
        except (OSError, ValueError, SyntaxError, InputError) as error:
            if self.context.wall() - time_s < self._settings.settle_s:
                return  # perhaps it is still being written: tried again at the next scan
            self.tally.bad += 1
            self.context.fault(Fault("bad-image", f"{self.context.name}: {path.name}: {error}"))
            frame = Frame(time_s, (), np.empty((0, 0)), Quality.BAD, self._settings.asset)
        self._seen[path.name] = known
        self.tally.gave(frame)
        self._emit(frame)
        self._finish(path)

    def _pixels(self, path: Path) -> Any:
        """The image as uint8 (1, height · width · channels), in the configured layout."""
        wanted = self._image_spec()
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

    def _finish(self, path: Path) -> None:
        try:
            if self._settings.after == "delete":
                path.unlink()
            elif self._settings.after == "move":
                done = self._folder / "done"
                done.mkdir(exist_ok=True)
                path.replace(done / path.name)
        except OSError as error:
            what = f"{self.context.name}: {path.name} cannot be moved or deleted: {error.strerror}"
            self.context.fault(Fault("storage", what))


def _own(settings: ImagesSettings) -> Image | None:
    """Size and layout in agent.toml; None without them."""
    if not settings.width:
        return None
    return Image(
        width=settings.width, height=settings.height, mode=settings.mode, layout=settings.layout
    )
