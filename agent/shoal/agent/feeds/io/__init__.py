"""Adapters of sources and sinks: files, MQTT, Modbus, OPC UA, Sparkplug, HTTP."""
