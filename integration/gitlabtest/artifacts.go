package gitlabtest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Artifact is a file that a job left.
type Artifact struct {
	Type     string    `json:"type"`
	Format   string    `json:"format"`
	Name     string    `json:"name"`
	ExpireIn string    `json:"expire_in,omitempty"`
	Size     int64     `json:"size"`
	SHA256   string    `json:"sha256"`
	At       time.Time `json:"at"`
	Path     string    `json:"-"` // of the file, until Close
}

type artifact struct{ Artifact }

// object is an address of the object store that is good for one use.
type object struct {
	job    *job
	upload *uploadRequest // nil for a download
	path   string
}

// uploadRequest is what the query of an upload says.
type uploadRequest struct{ typ, format, expireIn string }

// Artifacts are those of a job, in the order in which they came.
func (s *Server) Artifacts(id int64) ([]Artifact, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.job(id)
	if j == nil {
		return nil, fmt.Errorf("job %d: %w", id, ErrUnknown)
	}
	var out []Artifact
	for _, a := range j.artifacts {
		out = append(out, a.Artifact)
	}
	return out, nil
}

func (j *job) artifact(typ string) *artifact {
	for _, a := range j.artifacts {
		if a.Type == typ {
			return a
		}
	}
	return nil
}

// upload takes an artifact.
func (c *call) upload() {
	c.only(jobToken)
	q := c.r.URL.Query()
	in := uploadRequest{defaulted(q.Get("artifact_type"), "archive"), defaulted(q.Get("artifact_format"), "zip"), q.Get("expire_in")}
	c.s.mu.Lock()
	ok := c.processing(c.r.Header.Get(jobToken), "")
	if ok {
		c.s.alive(c.job)
		c.checkUpload(in)
	}
	c.s.mu.Unlock()
	switch {
	case !ok:
		return
	case !slices.Contains(formatsOf(in.typ), in.format):
		c.breach("an artifact of type %q in the format %q: GitLab takes %v", in.typ, in.format, formatsOf(in.typ))
		c.error(http.StatusBadRequest, "artifact_type and artifact_format do not go together")
		return
	case c.r.ContentLength > c.s.o.ArtifactLimit:
		c.message(http.StatusRequestEntityTooLarge)
		return
	}
	if to := c.redirectUpload(in); to != "" {
		c.w.Header().Set("Location", to)
		c.message(http.StatusTemporaryRedirect)
		return
	}
	c.receive(in)
}

// redirectUpload is where the upload is to go instead, if so.
func (c *call) redirectUpload(in uploadRequest) string {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.o.Uploads == Objects:
		return s.sign(&object{job: c.job, upload: &in})
	case s.o.Uploads == Node && !c.job.sentOn[in.typ]:
		if c.job.sentOn == nil {
			c.job.sentOn = map[string]bool{}
		}
		c.job.sentOn[in.typ] = true
		return s.URL + c.r.URL.RequestURI()
	}
	return ""
}

// sign makes an address of the object store. The lock is held.
func (s *Server) sign(o *object) string {
	id := random(16)
	s.objects[id] = o
	return s.storeURL + "/objects/" + id
}

// checkUpload compares an upload with what the job was to leave. The lock is held.
func (c *call) checkUpload(in uploadRequest) {
	for _, a := range c.job.payload.Artifacts {
		if defaulted(a.Type, "archive") == in.typ {
			if a.ExpireIn != in.expireIn {
				c.note("expire_in is %q, the job's %q", in.expireIn, a.ExpireIn)
			}
			if want := defaulted(a.Format, "zip"); want != in.format {
				c.note("artifact_format is %q, the job's %q", in.format, want)
			}
			return
		}
	}
	c.note("the job has no artifacts of type %q", in.typ)
}

// receive stores the file that a request's form has.
func (c *call) receive(in uploadRequest) {
	name, path, size, sum, err := c.save()
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		c.message(http.StatusRequestEntityTooLarge)
		return
	case err != nil:
		if c.r.Context().Err() == nil && !errors.Is(err, io.ErrUnexpectedEOF) { // else the runner is gone
			c.breach("the upload is not a form with a file: %v", err)
		}
		c.error(http.StatusBadRequest, "file is invalid")
		return
	}
	values, err := checkFile(path, in)
	if err != nil {
		_ = os.Remove(path)
		c.breach("the artifact %s is no %s: %v", name, in.format, err)
		c.message(http.StatusBadRequest, "Invalid Format")
		return
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	j := c.job
	if !c.processing(j.token, "") { // it may have ended meanwhile
		_ = os.Remove(path)
		return
	}
	if old := j.artifact(in.typ); old != nil {
		_ = os.Remove(path)
		if old.SHA256 != sum {
			c.note("another artifact of type %s, which differs from the first", in.typ)
			c.message(http.StatusBadRequest, "another artifact of the same type already exists")
			return
		}
		c.json(http.StatusCreated, "201")
		return
	}
	j.artifacts = append(j.artifacts, &artifact{Artifact{
		Type: in.typ, Format: in.format, Name: name, ExpireIn: in.expireIn, Size: size, SHA256: sum, At: time.Now(), Path: path,
	}})
	j.dotenv = append(j.dotenv, values...)
	c.s.notify()
	c.json(http.StatusCreated, "201")
}

// save writes the form's file into one of the server's.
func (c *call) save() (name, path string, size int64, sum string, err error) {
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, c.s.o.ArtifactLimit)
	form, err := c.r.MultipartReader()
	if err != nil {
		return "", "", 0, "", err
	}
	var part *multipart.Part
	for {
		if part, err = form.NextPart(); err != nil {
			return "", "", 0, "", err
		}
		if part.FormName() == "file" {
			break
		}
	}
	if part.FileName() == "" {
		return "", "", 0, "", errors.New("the part file has no file name")
	}
	f, err := os.CreateTemp(filepath.Join(c.s.dir, "artifacts"), "*")
	if err != nil {
		return "", "", 0, "", err
	}
	h := sha256.New()
	size, err = io.Copy(io.MultiWriter(f, h), part)
	if err == nil {
		_, err = form.NextPart() // the form has to end
		if err == nil {
			err = errors.New("the form has more than the file")
		} else if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", "", 0, "", errors.Join(err, os.Remove(f.Name()))
	}
	return part.FileName(), f.Name(), size, hex.EncodeToString(h.Sum(nil)), nil
}

// download gives the archive of a job to one that depends on it.
func (c *call) download() {
	c.only(jobToken)
	direct, err := strconv.ParseBool(defaulted(c.r.URL.Query().Get("direct_download"), "false"))
	if err != nil {
		c.breach("direct_download is neither true nor false")
	}
	token := c.r.Header.Get(jobToken)
	s := c.s
	s.mu.Lock()
	ok, own := false, false
	for _, j := range s.jobs {
		if j.Status != Running && j.Status != Canceling {
			continue
		}
		d, found := j.depTokens[token]
		ok = ok || found && d == c.job
		own = own || j.token == token
	}
	var a *artifact
	var location string
	if ok {
		if a = c.job.artifact("archive"); a != nil {
			switch {
			case s.o.Downloads == Objects && direct:
				location = s.sign(&object{job: c.job, path: a.Path})
			case s.o.Downloads == Node && direct && !c.r.URL.Query().Has("node"):
				location = s.URL + c.r.URL.RequestURI() + "&node=2"
			}
		}
	}
	s.mu.Unlock()
	switch {
	case !ok:
		if own {
			c.breach("the job's own token: artifacts come for the dependency's")
		}
		c.message(http.StatusForbidden)
	case a == nil:
		c.message(http.StatusNotFound)
	case location != "":
		http.Redirect(c.w, c.r, location, http.StatusFound)
	default:
		c.w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", a.Name))
		sendFile(c.w, c.r, a.Path)
	}
}

func sendFile(w http.ResponseWriter, r *http.Request, path string) {
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeFile(w, r, path)
}

// store is the object store. It must not see a token, and its addresses are good once for an upload.
func (s *Server) store(w http.ResponseWriter, r *http.Request) {
	c := &call{s: s, w: w, r: r, endpoint: Store}
	c.only()
	s.mu.Lock()
	o := s.objects[r.PathValue("id")]
	s.mu.Unlock()
	switch {
	case o == nil, (o.upload == nil) != (r.Method == http.MethodGet || r.Method == http.MethodHead):
		http.Error(w, `<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>`, http.StatusForbidden)
	case o.upload == nil:
		sendFile(w, r, o.path)
	default:
		c.job = o.job
		c.receive(*o.upload)
	}
}

// formatsOf are those that GitLab takes for a type (Enums::Ci::JobArtifact, TYPE_AND_FORMAT_PAIRS).
func formatsOf(typ string) []string {
	switch typ {
	case "archive", "lsif":
		return []string{"zip"}
	case "metadata", "junit", "metrics", "dotenv", "cobertura", "jacoco", "cluster_applications", "cyclonedx", "annotations",
		"repository_xray":
		return []string{"gzip"}
	case "codequality", "sast", "secret_detection", "dependency_scanning", "container_scanning", "cluster_image_scanning",
		"dast", "license_scanning", "performance", "browser_performance", "load_performance", "terraform", "api_fuzzing",
		"coverage_fuzzing", "requirements", "requirements_v2", "accessibility":
		return []string{"raw"}
	}
	return nil
}

// maxDotenv is how large a dotenv report may be, in bytes, and how many variables it may have.
const (
	maxDotenv          = 5 << 10
	maxDotenvVariables = 20
)
