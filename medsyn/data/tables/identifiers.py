"""Which columns of a table name patients, told by the columns' names: one list for every table.

Names are compared without case, spaces, punctuation and accents, and without the `s` of `Patient's`: `Patient ID`,
`PatientID` and `patient_id` are one name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# As regular expressions over folded names. A patient is who must not be on both sides of a split.
_WHO = r"(?:pa[tc]ient(?:e|en)?s?|pasient|subjects?|subj|participants?|persons?|pts?)"
_HIDDEN = r"(?:anon(?:ym(?:i[sz]ed|ous)?)?|deid(?:entified)?|pseudo(?:nym(?:i[sz]ed)?)?|dicom|study|unique)"
_NUMBER = r"(?:ids?|no|nr|num|nums|number|nummer|code|uid|key|index|idx|hash|identifier|ref|pseudonym)"
_PATIENT_NUMBER = re.compile(
    rf"{_HIDDEN}?{_WHO}{_NUMBER}*{_HIDDEN}?|{_NUMBER}{_WHO}|usubjid|(?:mrn|emrn|epi){_NUMBER}?"
    rf"|med(?:ical)?rec(?:ord)?s?{_NUMBER}*|(?:hospital|nhs|chart|case|fall){_NUMBER}|pid|ptid"
)
_PATIENT_NAME = re.compile(rf"{_WHO}s?(?:full|last|first|family|given)?names?|names?(?:of)?{_WHO}")
# What is said of patients and does not name one.
_HARMLESS = re.compile(
    rf"{_WHO}(?:age(?:s|years|inyears|group|range)?|sex|gender|positions?|orientation|side|laterality|type|group|class|"
    r"status|count|category|finding|findings|diagnosis|history|population|cohort)"
)
_DAY = r"(?:dates?|times?|datetimes?|day|timestamp)"
_EVENT = r"(?:study|series|exam(?:ination)?|acquisition|scan|content|visit|admission|discharge|death|report|procedure)"
_OTHER = re.compile(
    rf"pa[tc]ient.+|.*(?:birth|geburts){_DAY}|(?:date|year)ofbirth|dob|yob|birthyear|(?:dateof)?death{_DAY}?"
    rf"|accession{_NUMBER}?|{_EVENT}{_DAY}|{_DAY}of{_EVENT}"
    rf"|(?:study|series|sop|exam(?:ination)?|visit|encounter|admission|hadm|stay|dicom|episode)(?:instance)?{_NUMBER}"
    rf"|(?:first|last|sur|fore|given|family|middle|maiden|full)names?|initials"
    r"|(?:referring|performing|requesting|attending|reading)?(?:physician|doctor|radiologist)s?(?:name)?"
    r"|(?:home|postal|street|e?mail|ip)?address|e?mail|(?:tele|mobile)?phone(?:no|number)?|mobile|fax"
    r"|(?:zip|postal|post)code|ssn|socialsecurity(?:number|no)?|(?:passport|licen[cs]e|insurance|policy)(?:no|number|id)"
)


def may_identify(column: str) -> bool:
    """Whether a column of this name holds what names a patient: an identifier, a name, a date, an address."""
    return _any(_fold(column), _PATIENT_NUMBER, _PATIENT_NAME, _OTHER)


def patient_columns(header: Iterable[str]) -> list[str]:
    """The columns of a header that say whose an image is: numbers if there are any, else names."""
    names = [name.strip() for name in header]
    numbers = [name for name in names if _any(_fold(name), _PATIENT_NUMBER)]
    return numbers or [name for name in names if _any(_fold(name), _PATIENT_NAME)]


def _any(folded: str, *kinds: re.Pattern[str]) -> bool:
    return len(folded) < 100 and not _HARMLESS.fullmatch(folded) and any(kind.fullmatch(folded) for kind in kinds)


def _fold(name: str) -> str:
    text = unicodedata.normalize("NFKD", re.sub(r"['’]s\b", "", name)).casefold()
    return "".join(letter for letter in text if letter.isalnum())
