"""What a guest writes stays: sectors and file systems, alone, in company, and after a sudden end."""
