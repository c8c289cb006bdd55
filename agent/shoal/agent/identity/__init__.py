"""Who the device is: enrolment and the renewal of its certificate."""
