package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"turnout/api/client"
	"turnout/fsm"
)

// Bounds of an import. A batch is one command: all of its lines or none.
const (
	maxLine       = 8 << 10 // bytes, newline included
	maxBatchLines = 1000
	maxBatchBytes = 256 << 10
)

const ndjson = "application/x-ndjson"

// Import and export lie beside /v1/devices/, not below it: there, every name is a device key.
func (a *API) registerBulk() {
	in := op("import-devices", http.MethodPost, "/v1/devices:import",
		"Import devices from lines of JSON in atomic batches; fields that a line leaves out stay as they are; the first bad line ends the import, and nothing of its batch is kept")
	in.RequestBody = &huma.RequestBody{
		Required:    true,
		Description: "Lines of {key, cluster, pin, pin_strict, blocked}, each at most 8 KiB; batches have up to 1000 lines and 256 KiB",
		Content:     map[string]*huma.MediaType{ndjson: {Schema: &huma.Schema{Type: huma.TypeString}}},
	}
	register(a, RoleOperate, in, a.importDevices)

	out := get("export-devices", "/v1/devices:export", "Export devices as lines of JSON that an import takes; records that change meanwhile may be seen before or after")
	out.Responses = responses(ndjson, "Lines of {key, cluster, pin, pin_strict, blocked}")
	register(a, RoleRead, out, a.exportDevices)
}

// importInput keeps hold of the request: its body is read as a stream.
type importInput struct {
	WriteParams
	request *http.Request
	writer  http.ResponseWriter
}

// Resolve implements huma.Resolver.
func (in *importInput) Resolve(ctx huma.Context) []error {
	in.request, in.writer = humachi.Unwrap(ctx)
	return nil
}

func (a *API) importDevices(ctx context.Context, in *importInput) (*answer[client.ImportResult], error) {
	if media, _, err := mime.ParseMediaType(in.request.Header.Get("Content-Type")); err != nil || media != ndjson {
		return nil, fieldProblem(http.StatusUnsupportedMediaType, client.CodeMediaType, "header.Content-Type", "must be "+ndjson)
	}
	wait, p := in.timeout()
	if p != nil {
		return nil, p
	}
	im := importer{api: a, writer: in.writer, body: bufio.NewReaderSize(in.request.Body, maxLine)}
	p = im.run(ctx)
	info := infoFrom(ctx)
	info.lines, info.index = im.result.Accepted, im.result.Index
	if p != nil {
		im.result.Line = im.bad
		p.Import = &im.result
		drain(in.writer, in.request.Body)
		return nil, p
	}
	setReadDeadline(in.writer, time.Time{})
	setWriteDeadline(in.writer, deadline(wait+writeTimeout))
	if wait > 0 && im.result.Index > 0 {
		im.result.Lagging = a.lagging(ctx, im.result.Index, wait)
	}
	return list(im.result.Index, im.result), nil
}

// drain takes some more of a body that is not wanted: a sender that is still writing would lose the answer to a reset connection.
func drain(w http.ResponseWriter, body io.Reader) {
	setReadDeadline(w, deadline(2*time.Second))
	_, _ = io.CopyN(io.Discard, body, 4<<20)
	setWriteDeadline(w, deadline(writeTimeout))
}

// importer reads lines, gathers them into batches and proposes them one after the other.
type importer struct {
	api    *API
	writer http.ResponseWriter
	body   *bufio.Reader
	result client.ImportResult

	line    int // number of the line read last
	bad     int // number of the line that is to blame, 0 for none
	changes []fsm.DeviceChange
	numbers []int // line of each change
	bytes   int
}

// run imports until the end of the body or the first problem.
func (im *importer) run(ctx context.Context) *problem {
	setReadDeadline(im.writer, deadline(bodyTimeout))
	for {
		text, last, p := im.next()
		if p != nil {
			im.bad = im.line
			return p
		}
		if text = bytes.TrimSpace(text); len(text) > 0 {
			if len(im.changes) == maxBatchLines || im.bytes+len(text) > maxBatchBytes {
				if p := im.flush(ctx, im.line-1); p != nil {
					return p
				}
			}
			change, p := parseLine(text)
			if p != nil {
				im.bad = im.line
				return p
			}
			im.changes = append(im.changes, change)
			im.numbers = append(im.numbers, im.line)
			im.bytes += len(text)
		}
		if last {
			return im.flush(ctx, im.line)
		}
	}
}

// next reads one line. Only a body that ended in order has a last line.
func (im *importer) next() (text []byte, last bool, p *problem) {
	text, err := im.body.ReadSlice('\n')
	if len(text) > 0 || err == nil {
		im.line++
	}
	switch {
	case err == nil:
		return text, false, nil
	case errors.Is(err, io.EOF):
		return text, true, nil
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, false, tooLarge("line", maxLine)
	}
	return nil, false, readProblem(err, "body", 0)
}

func parseLine(text []byte) (fsm.DeviceChange, *problem) {
	var d client.DeviceLine
	if p := decodeStrict(text, &d, "line"); p != nil {
		return fsm.DeviceChange{}, p
	}
	change := fsm.DeviceChange{
		Key: fsm.DeviceKey(d.Key), Cluster: (*fsm.ClusterName)(d.Cluster), Pin: (*fsm.NodeName)(d.Pin), PinStrict: d.PinStrict, Blocked: d.Blocked,
	}
	if !change.Key.Valid() {
		return change, unprocessable("line.key", "must be 1 to 256 bytes of UTF-8")
	}
	return change, nil
}

// flush commits the batch; through is the line up to which everything is committed then.
func (im *importer) flush(ctx context.Context, through int) *problem {
	if len(im.changes) > 0 {
		ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
		defer cancel()
		res, err := im.api.proposer.Propose(ctx, &fsm.PutDevices{Changes: im.changes})
		if err == nil {
			err = res.Err()
		}
		if err != nil {
			return im.refused(err)
		}
		im.result.Accepted += len(im.changes)
		im.result.Index = res.Index
	}
	im.result.LastCommittedLine = through
	im.changes, im.numbers, im.bytes = im.changes[:0], im.numbers[:0], 0
	setReadDeadline(im.writer, deadline(bodyTimeout))
	return nil
}

// refused finds the line that a refusal of the batch is about.
func (im *importer) refused(err error) *problem {
	p := refusal(err, false)
	var e *fsm.Error
	if errors.As(err, &e) && len(p.Errors) > 0 {
		p.Errors[0].Location = "line"
		if e.Field != "" {
			p.Errors[0].Location += "." + e.Field
		}
		if e.Item >= 0 && e.Item < len(im.numbers) {
			im.bad = im.numbers[e.Item]
		}
	}
	return p
}

// exportPage is how many records are read from the tables at once.
const exportPage = 1000

func (a *API) exportDevices(_ context.Context, in *FilterParams) (*stream, error) {
	f, p := a.filter(in)
	if p != nil {
		return nil, p
	}
	return &stream{Body: func(ctx huma.Context) {
		_, w := humachi.Unwrap(ctx)
		ctx.SetHeader("Content-Type", ndjson)
		ctx.SetStatus(http.StatusOK)
		if err := a.export(ctx.Context(), w, f); err != nil {
			panic(http.ErrAbortHandler) // the status is out: only a broken connection tells that the export is not whole
		}
	}}, nil
}

// export writes all devices that match. The receiver has bodyTimeout for each page.
func (a *API) export(ctx context.Context, w http.ResponseWriter, f fsm.DeviceFilter) error {
	buf := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	var after fsm.DeviceKey
	for {
		setWriteDeadline(w, deadline(bodyTimeout))
		page, next := a.tables.Devices(after, exportPage, f)
		topo := a.tables.Topology()
		for _, d := range page {
			if err := enc.Encode(lineJSON(topo, d)); err != nil {
				return err
			}
		}
		if next == "" {
			return buf.Flush()
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		after = next
	}
}

// lineJSON says of a device what an operator can say. A pin whose node is gone is no pin any more.
func lineJSON(topo *fsm.Topology, d fsm.Device) client.DeviceLine {
	full := deviceJSON(topo, d)
	line := client.DeviceLine{Key: full.Key, Cluster: &full.Cluster, Blocked: &full.Blocked}
	if full.Pin != nil && !full.Pin.Gone {
		line.Pin, line.PinStrict = &full.Pin.Name, &full.PinStrict
	}
	return line
}
