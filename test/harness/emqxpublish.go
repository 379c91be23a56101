package harness

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"unicode/utf8"
)

// Reason codes in the bodies of POST /publish.
const (
	reasonNoSubscribers    = 16
	reasonUnspecified      = 131
	reasonTopicNameInvalid = 144
	reasonPacketTooLarge   = 151
)

// publishRequest is the body of POST /publish. Unknown keys are ignored, clientid among them, as since 5.0.14.
type publishRequest struct {
	Topic           *string `json:"topic"`
	Payload         *string `json:"payload"`
	PayloadEncoding string  `json:"payload_encoding"`
	QoS             byte    `json:"qos"`
	Retain          bool    `json:"retain"`
	Properties      struct {
		PayloadFormat   *byte             `json:"payload_format_indicator"`
		ExpirySeconds   uint32            `json:"message_expiry_interval"`
		ResponseTopic   string            `json:"response_topic"`
		CorrelationData string            `json:"correlation_data"`
		ContentType     string            `json:"content_type"`
		UserProperties  map[string]string `json:"user_properties"`
	} `json:"properties"`
}

// publish answers POST /publish.
func (a *ManagementAPI) publish(w http.ResponseWriter, r *http.Request) {
	req, problem := readPublish(w, r)
	if problem != "" {
		writeError(w, http.StatusBadRequest, "BAD_REQUEST", problem)
		return
	}
	m, code, problem := req.message()
	if problem != "" {
		writeReason(w, http.StatusBadRequest, code, problem)
		return
	}
	a.mu.Lock()
	fail := a.failPublish
	a.mu.Unlock()
	if fail {
		writeReason(w, http.StatusServiceUnavailable, reasonUnspecified, "failed_to_dispatch")
		return
	}
	matched, err := a.o.Cluster.Publish(m)
	switch {
	case errors.Is(err, ErrStopped):
		writeReason(w, http.StatusServiceUnavailable, reasonUnspecified, "failed_to_dispatch")
	case err != nil:
		writeReason(w, http.StatusBadRequest, reasonTopicNameInvalid, "topic_name_invalid")
	case matched == 0:
		writeReason(w, http.StatusAccepted, reasonNoSubscribers, "no_matching_subscribers")
	default:
		writeJSON(w, http.StatusOK, map[string]string{"id": messageID()})
	}
}

// readPublish reads and checks the body against the schema. A problem is a message without any value of the request.
func readPublish(w http.ResponseWriter, r *http.Request) (req publishRequest, problem string) {
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/json" {
		return req, "the body is not application/json"
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4*maxPacketBytes))
	if err != nil {
		return req, "the body is too long or broke off"
	}
	if err := json.Unmarshal(body, &req); err != nil {
		return req, "Invalid json message received"
	}
	switch {
	case req.Topic == nil:
		return req, "topic is required"
	case req.Payload == nil:
		return req, "payload is required"
	case req.QoS > 2:
		return req, "qos is not 0, 1 or 2"
	}
	switch req.PayloadEncoding {
	case "", "plain", "base64":
		return req, ""
	}
	return req, "payload_encoding is not plain or base64"
}

// message turns the request into a message; code and problem tell why the broker would reject it.
func (req publishRequest) message() (m Message, code int, problem string) {
	payload := []byte(*req.Payload)
	if req.PayloadEncoding == "base64" {
		decoded, err := base64.StdEncoding.DecodeString(*req.Payload)
		if err != nil {
			return m, reasonUnspecified, "failed_to_decode_payload"
		}
		payload = decoded
	}
	topic := *req.Topic
	if topic == "" || len(topic) > 65535 || !utf8.ValidString(topic) || strings.ContainsAny(topic, "+#\x00") {
		return m, reasonTopicNameInvalid, "topic_name_invalid"
	}
	if len(payload)+len(topic) > maxPacketBytes {
		return m, reasonPacketTooLarge, "packet_too_large"
	}
	m = Message{
		Topic: topic, Payload: payload, QoS: req.QoS, Retain: req.Retain,
		Properties: MessageProperties{
			PayloadFormat: req.Properties.PayloadFormat, ExpirySeconds: req.Properties.ExpirySeconds,
			ContentType: req.Properties.ContentType, ResponseTopic: req.Properties.ResponseTopic,
			CorrelationData: []byte(req.Properties.CorrelationData),
		},
	}
	for _, key := range sortedKeys(req.Properties.UserProperties) {
		m.Properties.User = append(m.Properties.User, UserProperty{Key: key, Value: req.Properties.UserProperties[key]})
	}
	return m, 0, ""
}

func writeReason(w http.ResponseWriter, status, code int, message string) {
	writeJSON(w, status, map[string]any{"reason_code": code, "message": message})
}

// messageID returns 32 upper-case hexadecimal digits.
func messageID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: the runtime ends the process instead
	return strings.ToUpper(hex.EncodeToString(id[:]))
}
