"""What label files of strangers may say: read, repaired where their meaning is plain, refused where it is not."""
