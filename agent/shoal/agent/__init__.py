"""The agent: what runs on a device. Pure modules here, adapters in io/, built in __main__."""
