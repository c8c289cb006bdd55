"""Source and sink plugins: files, images, MQTT, Modbus, OPC UA, Sparkplug B, HTTP push, replay."""
