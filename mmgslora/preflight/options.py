"""Settings that a command line overrides: ``--cfg-options KEY=VALUE ...``."""

from __future__ import annotations

from typing import Any

from mmengine.config import DictAction


class Options(DictAction):
    """``--cfg-options KEY=VALUE ...`` of MMEngine; what is no such pair is an error of use.

    Unlike MMEngine's, names keep their blanks (``[[traffic light]]``) and their leading zeros
    (``[[0000045]]``).
    """

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        for value in values:
            key, found, _ = value.partition('=')
            if not found or not key.strip('.'):
                parser.error(f'--cfg-options takes KEY=VALUE, such as train_cfg.seal=True: {value}')
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError, RecursionError) as error:
            parser.error(f'--cfg-options {" ".join(values)} cannot be read: {error}')

    @staticmethod
    def _parse_iterable(text: str) -> Any:
        """A number, True, False, None, text, or what stands in brackets or between commas."""
        bare = text.strip().strip('\'"')
        ends = bare[:1] + bare[-1:]
        bracketed = ends in ('[]', '()')
        if bracketed or ',' in bare:
            parts = _between_commas(bare[1:-1] if bracketed else bare)
            values = [Options._parse_iterable(part) for part in parts]
            return tuple(values) if ends == '()' else values
        parsed = DictAction._parse_int_float_bool(bare)
        return bare if isinstance(parsed, int) and str(parsed).lower() != bare.lower() else parsed


def _between_commas(text: str) -> list[str]:
    """The parts of a list without its brackets; lists within it stay whole."""
    parts, depth = [''], 0
    for character in text:
        depth += (character in '[(') - (character in '])')
        if depth < 0:
            break
        if character == ',' and not depth:
            parts.append('')
        else:
            parts[-1] += character
    if depth:
        raise ValueError(f'brackets do not match in {text!r}')
    return parts if text.strip() else []
