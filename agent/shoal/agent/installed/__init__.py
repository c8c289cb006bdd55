"""What is on the disk and what it says of itself: slots, records, floors."""
