"""What a finished run tells: metrics, tables, pictures, exports."""
