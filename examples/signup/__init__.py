"""A sign-up service whose welcome mails survive: the example of the README, complete enough to run."""
