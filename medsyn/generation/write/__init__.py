"""What an image leaves on disk: PNG, DICOM, tar archives, Parquet tables, and how it was made."""
