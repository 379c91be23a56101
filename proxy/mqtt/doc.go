// Package mqtt is the wire of the gateway: it reads a CONNECT of MQTT 3.1,
// 3.1.1 and 5.0, writes refusals (CONNACK) and farewells (DISCONNECT) in the
// version that the client speaks, reads the CONNACK of a broker, and follows
// the packet boundaries of a relayed stream. It never changes a packet: the
// gateway forwards the very bytes that it parsed.
//
// Data flows like this. [ConnectLength] looks at the first bytes of a
// connection and tells how long the CONNECT is (or that it is none).
// [ReadConnect] does so over an io.Reader with a buffer that grows only as
// bytes arrive. [ParseConnect] turns the complete packet into a [Connect]
// whose slices point into that packet; nothing is allocated. What cannot be
// routed is a *[ParseError], which knows the answer to send ([ParseError.AppendReply])
// and the one [Reason] to count. Refusals of the gateway itself are a
// [Refusal], written by [AppendConnack]. Behind CONNACK the bytes are opaque:
// a [Framer] only counts packets and tells where one may be inserted.
//
// The package reads no clock, starts no goroutine, keeps no state between
// calls and has no logger. Deadlines belong to whoever owns the connection.
// A [Connect] prints and logs without user name, password and will.
//
// # What is refused
//
// Firmware in the field cannot be changed, so by default only that is refused
// which cannot be parsed or which two readers would understand differently.
// With strict everything that the standard forbids in a CONNECT is refused.
// "5.0" names the reason code, "3.x" the return code; "close" sends nothing.
// Section numbers are those of 3.1.1 unless 5.0 is said.
//
//	breach                                          default  strict   5.0   3.x
//	first byte no CONNECT, or 0x16 (TLS)            refuse   refuse   close close
//	length of five bytes (2.2.3)                    refuse   refuse   close close
//	longer than the limit                           refuse   refuse   0x95* close
//	name neither MQTT nor MQIsdp (3.1.2-1)          refuse   refuse   close close
//	unknown level, or one that the name has not     refuse   refuse   0x01 in 3.x form
//	field or property past its end                  refuse   refuse   0x81  close
//	bytes behind the last field                     refuse   refuse   0x81  close
//	client id or user name: bad UTF-8, U+0000       refuse   refuse   0x81  close
//	unknown property (5.0 2.2.2)                    refuse   refuse   0x81  -
//	3.1: user name or password flag, no field       pass     pass     -     -
//	3.1: header flags, reserved connect flag        pass     pass     -     -
//	3.1.1, 5.0: header flags (2.2.2)                pass     refuse   0x81  close
//	reserved connect flag (3.1.2-3)                 pass     refuse   0x81  close
//	Will QoS 3 (3.1.2-14)                           pass     refuse   0x81  close
//	Will QoS or Retain without Will (3.1.2-13, -15) pass     refuse   0x81  close
//	3.1.1: password without user name (3.1.2-22)    pass     refuse   -     close
//	bridge bit in the level                         pass     refuse   0x84  0x01
//	3.1: client id of 0 or more than 23 characters  pass     refuse   -     0x02
//	3.1.1: empty client id, clean session 0         pass     refuse   -     0x02
//	over-long length encoding (5.0 1.5.5)           pass     refuse   0x81  pass
//	bad UTF-8 or U+0000 in any other string         pass     refuse   0x81  close
//	will topic empty or with a wildcard (4.7)       pass     refuse   0x90  close
//	property of another packet                      pass     refuse   0x81  -
//	property twice, value out of range              pass     refuse   0x82  -
//	response topic empty or with a wildcard         pass     refuse   0x82  -
//	Authentication Data without Method (5.0 3.1.2)  pass     refuse   0x82  -
//
//	* only when the level had arrived together with the length.
//
// Why the passed ones are harmless: none of them moves a field, so the gateway
// and every broker read the same client identifier, user name and password;
// the broker answers as its operators chose. A 3.1 CONNECT may carry any header
// flags, except that 0x16 is taken for a TLS ClientHello on a plain listener.
// The bridge bit is an extension of Mosquitto that a broker wants to see.
//
// Why U+0000 is refused in names: a broker written in C could end the name
// there, and two devices would share one session.
package mqtt
