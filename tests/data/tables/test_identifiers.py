from __future__ import annotations

import pytest

from medsyn.data.tables.identifiers import may_identify, patient_columns

PATIENTS = (
    "patient_id",
    "patient",
    "Patient ID",
    "PatientID",
    "PATIENT-NR",
    "patient id (anonymised)",
    "anon_patient_id",
    "Patienten-ID",
    "id_patient",
    "subject_id",
    "Subject",
    "participant_id",
    "MRN",
    "medical_record_number",
    "case_id",
    "usubjid",
    "pat_id",
    "PatNr",
    "MRN_1",
    "subject_id_2",
    "Subject2",
    "ptnt_id",
    "患者ID",
    "пациент",
)
NAMES = ("Patient's Name", "Patient\N{RIGHT SINGLE QUOTATION MARK}s name", "PatientName", "name_of_patient")
OTHERS = (
    "patient_birth_date",
    "dob",
    "Date of Birth",
    "accession_number",
    "study_uid",
    "StudyInstanceUID",
    "SOPInstanceUID",
    "series_id",
    "study_date",
    "AdmissionDate",
    "hadm_id",
    "last_name",
    "ReferringPhysicianName",
    "home address",
    "e-mail",
    "ssn",
    "patient_comments",
    "Geburtsdatum",
    "record_id",
    "redcap_id",
    "acc_no",
    "acq_date",
    "exam_dt",
    "dob_year",
    "DOB2",
    "Vorname",
    "Nachname",
    "name",
    "zip",
    "city",
    "hosp_no",
    "UHID",
    "CPR",
    "NRIC",
    "national_id",
    "BSN",
    "InstitutionName",
    "ssn_hash",
    "health_card_number",
    "姓名",
)
HARMLESS = (
    "finding",
    "site",
    "scanner",
    "view",
    "patient_age",
    "PatientSex",
    "patient_position",
    "subjective_quality",
    "paragraph",
    "personality",
    "ptx",
    "points",
    "birads",
    "accessory",
    "study_type",
    "image_id",
    "split",
    "birth_weight",
    "",
)


@pytest.mark.parametrize("name", PATIENTS + NAMES)
def test_columns_of_patients_are_known_however_they_are_written(name: str) -> None:
    assert may_identify(name) and patient_columns(["path", name, "Text"]) == [name]


@pytest.mark.parametrize("name", OTHERS)
def test_what_else_identifies_is_not_taken_for_whose_an_image_is(name: str) -> None:
    assert may_identify(name) and patient_columns([name]) == []


@pytest.mark.parametrize("name", HARMLESS)
def test_other_columns_do_not_identify(name: str) -> None:
    assert not may_identify(name) and patient_columns([name]) == []


def test_numbers_come_before_names() -> None:
    assert patient_columns(["Patient's Name", "MRN"]) == ["MRN"]
