"""The records of a generated image and of each of its candidates: every key, defined once.

A line of `manifest.jsonl` is an `ImageRecord`, a line of `attempts.jsonl` an `AttemptRecord`; the Parquet tables have
the same keys as columns, in the order given here. Everything else that must know the keys asks this module: the
tables' types, the names that a prompt list's columns may not take, what `verify` expects, the PNG file's text, and the
tables of docs/output.md, which `python -m medsyn.records` prints.
"""

import types
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints

Group = Literal["environment", "file"]
Condition = Literal["archive", "dicom", "filtered", "table"]


@dataclass(frozen=True)
class About:
    """What the schema says about a key besides its type."""

    meaning: str  # Markdown
    group: Group | None = None
    when: tuple[Condition, ...] = ()  # present if all of these hold; `table`: as a column only
    wide: bool = False  # an integer of 64 bits in the tables
    is_column: bool = True
    is_text: bool = True  # stored in the PNG file


class ImageRecord(TypedDict):
    """One requested image, whether it was generated or not."""

    id: Annotated[str, About("the prompt's name, unique in its list")]
    prompt: Annotated[str, About("its text")]
    modality: Annotated[str, About("OCT, CT, X-Ray, MRI or Fundus, or with a part of the body: Brain MRI")]
    mode: Annotated[str, About("the arm that made it: an entry of `generation.modes`")]
    replicate: Annotated[int, About("number of the image among those of its prompt, from 0")]
    seed: Annotated[int | None, About("the image's noise depends on it alone", wide=True)]
    accepted: Annotated[bool, About("whether a candidate passed the filter; always true without one")]
    reason: Annotated[
        str,
        About(
            "`accepted`, `unfiltered`, or how an exhausted budget ended: `exhausted-failed`, `exhausted-skipped`, "
            "`exhausted-kept-best`",
        ),
    ]
    attempts: Annotated[int, About("candidates that the filter examined")]
    attempt: Annotated[int | None, About("the candidate that became the image, from 0")]
    selector: Annotated[float | None, About("its Selector score, 0 to 1; null without a filter")]
    policy: Annotated[float | None, About("its Policy score, 0 to 1; null without a filter")]
    selector_spread: Annotated[
        float | None, About("how much the Selector's networks differ: the standard deviation of their scores")
    ]
    policy_spread: Annotated[float | None, About("the same of the Policy's")]
    unfamiliar: Annotated[
        bool | None, About("whether it is unlike all that the Selector has learned from; null without a filter")
    ]
    precision: Annotated[str | None, About("its UNet's precision: `float32` where `dtype` gave non-finite values")]
    num_inference_steps: Annotated[int, About("denoising steps in effect")]
    guidance_scale: Annotated[float, About("classifier-free guidance in effect; 1 means none")]
    negative_prompt: Annotated[str, About("the one in effect; may be empty")]
    extra: Annotated[
        dict[str, Any],
        About("the prompt list's passthrough columns; in the tables one column each", is_column=False, is_text=False),
    ]
    file: Annotated[
        str | None,
        About("name of the PNG file, null if there is no image; in the tables a path below `work/generate`", "file"),
    ]
    member: NotRequired[
        Annotated[str | None, About("its name in the tar, with `generation.output=webdataset`", "file", ("table",))]
    ]
    archive: NotRequired[
        Annotated[str | None, About("the tar that the file is in", "file", ("archive",), is_column=False)]
    ]
    offset: NotRequired[
        Annotated[int | None, About("offset of the file in the tar, in bytes", "file", ("archive",), wide=True)]
    ]
    bytes: Annotated[int | None, About("size of the file", "file", wide=True)]
    sha256: Annotated[str | None, About("SHA-256 of the file, in hex", "file")]
    width: Annotated[int | None, About("pixels", "file")]
    height: Annotated[int | None, About("pixels", "file")]
    dicom: NotRequired[Annotated[str, About("name of the DICOM file, with `generation.dicom`", "file", ("dicom",))]]
    dicom_bytes: NotRequired[Annotated[int, About("its size", "file", ("dicom",), is_column=False)]]
    dicom_sha256: NotRequired[Annotated[str, About("its SHA-256", "file", ("dicom",))]]
    dicom_offset: NotRequired[
        Annotated[int, About("its offset in the tar, in bytes", "file", ("dicom", "archive"), is_column=False)]
    ]
    model_fingerprint: Annotated[str, About("of the weights that generated the image")]
    config_fingerprint: Annotated[str, About("of the settings that an image of this mode depends on")]
    scorers_fingerprint: NotRequired[
        Annotated[str, About("of the weights that chose it, in a filtered campaign", when=("filtered",))]
    ]
    quality_threshold: NotRequired[
        Annotated[float, About("the Selector score that was needed, in a filtered campaign", when=("filtered",))]
    ]
    item_fingerprint: Annotated[
        str, About("of the prompt list's row and the replicate", is_column=False, is_text=False)
    ]
    synthetic: Annotated[
        bool,
        About(
            "always true; `Synthetic: YES` in the PNG file, Synthetic Data (0008,001C) in the DICOM file",
            is_text=False,
        ),
    ]
    scheduler: Annotated[str, About("the sampler, by its name in the configuration")]
    batch_size: Annotated[int, About("candidates denoised together")]
    dtype: Annotated[str, About("the UNet's precision as chosen", "environment")]
    attention: Annotated[
        str,
        About(
            "PyTorch's attention and, on a GPU, the kernels it may use; and how convolutions and the VAE compute",
            "environment",
        ),
    ]
    container: Annotated[str | None, About("the container, as given by MEDSYN_IMAGE", "environment")]
    software: Annotated[str, About("versions of medsyn and of all that affects an image's bytes", "environment")]
    device: NotRequired[Annotated[str | None, About("the GPU's model, or `cpu`", when=("table",))]]
    block: NotRequired[Annotated[int, About("number of the block that holds it", when=("table",))]]
    gpu_seconds: NotRequired[
        Annotated[float, About("its share of the time that its block's batches took", when=("table",))]
    ]


class AttemptRecord(TypedDict):
    """One candidate: an image that was sampled for the filter to examine."""

    id: Annotated[str, About("of its prompt")]
    replicate: Annotated[int, About("of its image")]
    modality: NotRequired[Annotated[str, About("of its image", when=("table",))]]
    mode: NotRequired[Annotated[str, About("of its image", when=("table",))]]
    attempt: Annotated[int, About("number of the candidate among those of its image, from 0")]
    seed: Annotated[int, About("its noise depends on it alone", wide=True)]
    finite: Annotated[bool, About("whether every pixel and every score is a number")]
    selector: Annotated[float | None, About("its Selector score, 0 to 1")]
    policy: Annotated[float | None, About("its Policy score, 0 to 1")]
    selector_spread: Annotated[float | None, About("the standard deviation of the Selector's networks")]
    policy_spread: Annotated[float | None, About("the standard deviation of the Policy's networks")]
    unfamiliar: Annotated[bool | None, About("whether it is unlike all that the Selector has learned from")]
    precision: Annotated[str, About("its UNet's precision")]
    passed: Annotated[bool, About("whether it passed the filter")]
    reason: Annotated[
        str | None,
        About(
            "why it is not the image: `non-finite`, `selector-below-threshold`, `policy-below-minimum`, `outranked` "
            "by one with a better Policy score, `surplus` (generated to fill a batch, never examined; in `timing.json` "
            "only); null if it was not rejected",
        ),
    ]
    chosen: Annotated[bool, About("whether it is the image")]
    block: NotRequired[Annotated[int, About("number of its block", when=("table",))]]
    gpu_seconds: NotRequired[
        Annotated[float, About("its share of the time that its block's batches took", when=("table",))]
    ]


Schema = type[ImageRecord] | type[AttemptRecord]


@dataclass(frozen=True)
class Field:
    """One key of a record, as its class defines it."""

    name: str
    types: tuple[type, ...]  # that its value in JSON may have, as `isinstance` takes them
    about: About

    @property
    def column_type(self) -> str | None:
        """Arrow's name for the type of the column; None where there is none."""
        if not self.about.is_column:
            return None
        return "int64" if self.about.wide else _ARROW[self.types[0]]


_ARROW = {str: "string", int: "int32", float: "float64", bool: "bool"}
_JSON = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", type(None): "null"}


def fields(schema: Schema) -> Iterator[Field]:
    """The keys of a record, columns in the tables' order."""
    for name, hint in get_type_hints(schema, include_extras=True).items():
        annotated = get_args(hint)[0] if get_origin(hint) is NotRequired else hint
        value, about = get_args(annotated)
        one_of = get_args(value) if get_origin(value) in (types.UnionType, Union) else (value,)
        yield Field(name, tuple(get_origin(one) or one for one in one_of), about)


def columns(schema: Schema) -> dict[str, str]:
    """The columns that every table of these records has, and Arrow's names for their types."""
    return {field.name: field.column_type for field in fields(schema) if field.column_type is not None}


def json_types(schema: Schema, on: Collection[Condition] = ()) -> dict[str, tuple[type, ...]]:
    """The keys that a record must have where the conditions `on` hold, and the types that `json` reads them as."""
    return {
        field.name: (int, *field.types) if float in field.types else field.types
        for field in fields(schema)
        if set(field.about.when) <= set(on)
    }


IMAGE_FILE = tuple(field.name for field in fields(ImageRecord) if field.about.group == "file" and not field.about.when)
ARCHIVED = tuple(field.name for field in fields(ImageRecord) if "archive" in field.about.when)
# what an image was computed with, as far as it can be chosen
ENVIRONMENT = tuple(field.name for field in fields(ImageRecord) if field.about.group == "environment")
RESERVED = frozenset(field.name for field in fields(ImageRecord))  # names that no passthrough column may have


def markdown(schema: Schema) -> str:
    """The keys as a table of docs/output.md."""
    lines = ["| key | in JSON | in Parquet | meaning |", "| --- | --- | --- | --- |"]
    for field in fields(schema):
        in_json = " or ".join(_JSON[one] for one in field.types) if "table" not in field.about.when else ""
        lines.append(f"| `{field.name}` | {in_json} | {field.column_type or ''} | {field.about.meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{markdown(ImageRecord)}\n\n{markdown(AttemptRecord)}")
