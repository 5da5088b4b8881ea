"""Which columns of a table name patients, told by the columns' names: one list for every table.

Names are compared without case, spaces, punctuation and accents, and without the `s` of `Patient's`: `Patient ID`,
`PatientID` and `patient_id` are one name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# As regular expressions over folded names. A patient is who must not be on both sides of a split.
_WHO = r"(?:pa[tc]ient(?:e|en)?s?|pasient|pat|ptnt|subjects?|subj|participants?|persons?|pts?)"
_HIDDEN = r"(?:anon(?:ym(?:i[sz]ed|ous)?)?|deid(?:entified)?|pseudo(?:nym(?:i[sz]ed)?)?|dicom|study|unique)"
_NUMBER = r"(?:ids?|no|nr|num|nums|number|nummer|code|uid|key|index|idx|hash|identifier|ref|pseudonym)"
_PATIENT_NUMBER = re.compile(
    rf"{_HIDDEN}?{_WHO}{_NUMBER}*{_HIDDEN}?|{_NUMBER}{_WHO}|usubjid|(?:mrn|emrn|epi){_NUMBER}?"
    rf"|med(?:ical)?rec(?:ord)?s?{_NUMBER}*|(?:hospital|nhs|chart|case|fall){_NUMBER}|pid|ptid"
    r"|.*患者.*|病历号|住院号|пациент.*"
)
_PATIENT_NAME = re.compile(rf"{_WHO}s?(?:full|last|first|family|given)?names?|names?(?:of)?{_WHO}")
# What is said of patients and does not name one.
_HARMLESS = re.compile(
    rf"{_WHO}(?:age(?:s|years|inyears|group|range)?|sex|gender|positions?|orientation|side|laterality|type|group|class|"
    r"status|count|category|finding|findings|diagnosis|history|population|cohort)"
)
_DAY = r"(?:dates?|times?|datetimes?|day|timestamp|datum|dt|year)"
_EVENT = (
    r"(?:study|series|exam(?:ination)?|acq(?:uisition)?|scan|content|visit|admission|discharge|death|report|procedure)"
)
_OTHER = re.compile(
    rf"pa[tc]ient.+|.*(?:birth|geburts){_DAY}|(?:date|year)ofbirth|dob{_DAY}?|yob|birthyear|(?:dateof)?death{_DAY}?"
    rf"|(?:accession|acc){_NUMBER}|accession|{_EVENT}{_DAY}|{_DAY}of{_EVENT}"
    rf"|(?:study|series|sop|exam(?:ination)?|visit|encounter|admission|hadm|stay|dicom|episode|record|redcap)"
    rf"(?:instance)?{_NUMBER}"
    r"|(?:first|last|sur|fore|given|family|middle|maiden|full|vor|nach)?names?|initials|prenom|nom|apellidos?|nombre"
    r"|(?:referring|performing|requesting|attending|reading)?(?:physician|doctor|radiologist)s?(?:name)?"
    r"|(?:home|postal|street|e?mail|ip)?address|e?mail|(?:tele|mobile)?phone(?:no|number)?|mobile|fax"
    rf"|(?:zip|postal|post)code|zip|plz|city|institution(?:name|address)?|hosp{_NUMBER}|uhid"
    rf"|(?:ssn|socialsecurity|cpr|nric|bsn|pesel|aadhaar){_NUMBER}*|(?:national|healthcard){_NUMBER}"
    rf"|(?:passport|licen[cs]e|insurance|policy){_NUMBER}|姓名|фио"
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
    spellings = {folded, folded.rstrip("0123456789")}  # MRN_1, the first of several
    if len(folded) >= 100 or any(_HARMLESS.fullmatch(spelling) for spelling in spellings):
        return False
    return any(kind.fullmatch(spelling) for kind in kinds for spelling in spellings)


def _fold(name: str) -> str:
    text = unicodedata.normalize("NFKD", re.sub(r"['’]s\b", "", name)).casefold()
    return "".join(letter for letter in text if letter.isalnum())
