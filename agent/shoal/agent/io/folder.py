"""Names of what lies in the agent's folder."""

SETTINGS = "agent.toml"
KEY, CERTIFICATE, CA = "device.key", "device.crt", "ca.pem"
ROOT, DIRECTOR = "root.json", "director.json"
METADATA, MODELS = "metadata", "models"
JOURNAL, OUTBOX = "journal.db", "outbox.db"
SOCKET, ADDRESS, LOCK = "agent.sock", "endpoint", "agent.lock"
