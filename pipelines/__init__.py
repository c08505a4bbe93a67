"""What `ray job submit` runs: thin scripts over bkray.runtime."""
