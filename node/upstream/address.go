package upstream

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"turnout/fsm"
)

// nodeAddress finds where devices reach a node. The operator's address table comes first. Otherwise the part of the Erlang
// node name behind its only '@' is the host, and the port is the spec's. A loopback host means the host of the management
// URL that gave the answer: it is the broker's loopback, not the gateway's. A name that cannot be read this way has a problem
// instead of an address.
func nodeAddress(spec fsm.ClusterSpec, managementHost string, name fsm.NodeName) (address, problem string) {
	if !printable(string(name)) {
		return "", "a node name that is too long or not printable text"
	}
	if a, ok := spec.Addresses[name]; ok {
		return a, ""
	}
	short, host, ok := strings.Cut(string(name), "@")
	if !ok || short == "" || host == "" || strings.Contains(host, "@") {
		return "", "a node name that is not of the form name@host"
	}
	// An IPv6 literal stands behind the '@' without brackets, so the host is never split at ':'.
	ip, err := netip.ParseAddr(host)
	switch {
	case err == nil && ip.Zone() != "":
		return "", "a node name with an address that is only valid on one link"
	case err == nil && never(ip.Unmap()):
		return "", "a node name with an address that no device can reach"
	case err == nil && ip.Unmap().IsLoopback(), strings.EqualFold(host, "localhost"):
		host = managementHost
	case err != nil && !hostName(host):
		return "", "a node name whose host part is not a host"
	}
	return net.JoinHostPort(host, strconv.Itoa(int(spec.Port))), ""
}

// hostName reports whether s can be a host name: 1–253 bytes of labels of letters, digits, '-' and '_'. Underscores are not
// allowed by RFC 1123 and common in container networks.
func hostName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return false
		}
	}
	return true
}

// printable reports whether s may stand in the tables as a node name.
func printable(s string) bool {
	return len(s) > 0 && len(s) <= fsm.MaxNameBytes && utf8.ValidString(s) &&
		strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) < 0
}
