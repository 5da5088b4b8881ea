"""What generation writes: PNG, DICOM, tar archives, Parquet tables, and provenance."""
