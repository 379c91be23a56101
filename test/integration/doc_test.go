//go:build integration

// Package integration runs the product as it is shipped: three `turnout serve` processes behind HAProxy in plain TCP mode, before two
// mosquitto "clusters" of two, driven by mosquitto_pub, mosquitto_sub, Paho and the turnout CLI. Where a device went is read from the
// logs of the brokers. It needs bin/turnout (make build) and Debian's mosquitto, mosquitto-clients and haproxy.
package integration
