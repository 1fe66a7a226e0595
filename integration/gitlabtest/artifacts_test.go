package gitlabtest

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// leaves is a job that leaves artifacts.
func leaves(a ...spec.Artifact) spec.Job { return spec.Job{Artifacts: a} }

func TestUpload(t *testing.T) {
	s := newServer(t, Options{ArtifactLimit: 4096})
	a := newAgent(t, s)
	s.Offer(leaves(spec.Artifact{Type: "archive", Format: "zip", ExpireIn: "1 week"}, spec.Artifact{Type: "junit", Format: "gzip"}))
	j := a.take()
	zip := zipOf("out.txt", "result")
	want(t, a.upload(j, "archive", "zip", "1 week", "artifacts.zip", zip), http.StatusCreated)
	want(t, a.upload(j, "archive", "zip", "1 week", "artifacts.zip", zip), http.StatusCreated) // again, as after a lost answer
	want(t, a.upload(j, "junit", "gzip", "", "junit.xml.gz", gzipOf("<testsuite/>")), http.StatusCreated)
	got, err := s.Artifacts(j.ID)
	if err != nil || len(got) != 2 || got[0].Name != "artifacts.zip" || got[0].Size != int64(len(zip)) || got[1].Type != "junit" {
		t.Errorf("%+v %v", got, err)
	}
	want(t, a.upload(j, "junit", "gzip", "", "big.gz", make([]byte, 5000)), http.StatusRequestEntityTooLarge)
	clean(t, s)

	want(t, a.upload(j, "archive", "zip", "1 week", "artifacts.zip", zipOf("out.txt", "other")), http.StatusBadRequest)
	breach(t, s, "differs from the first")
	want(t, a.upload(j, "archive", "zip", "", "artifacts.zip", zip), http.StatusCreated)
	breach(t, s, "expire_in")
	want(t, a.upload(j, "junit", "raw", "", "junit.xml", []byte("x")), http.StatusBadRequest)
	breach(t, s, `in the format "raw"`)
	want(t, a.upload(j, "junit", "gzip", "", "junit.xml", []byte("<testsuite/>")), http.StatusBadRequest)
	breach(t, s, "is no gzip")
	want(t, a.upload(j, "archive", "zip", "1 week", "artifacts.zip", []byte("PK")), http.StatusBadRequest)
	breach(t, s, "is no zip")
	want(t, a.upload(j, "archive", "zip", "1 week", "artifacts.zip", zipOf("../../etc/passwd", "x")), http.StatusBadRequest)
	breach(t, s, "leads out")
	want(t, a.upload(j, "sast", "raw", "", "sast.json", []byte("{}")), http.StatusCreated)
	breach(t, s, "no artifacts of type")
	want(t, a.do("POST", fmt.Sprintf("jobs/%d/artifacts?artifact_type=junit&artifact_format=gzip", j.ID), http.Header{jobToken: {j.Token}}, strings.NewReader("x")), http.StatusBadRequest)
	breach(t, s, "not a form")
	a.succeed(j)
	want(t, a.upload(j, "junit", "gzip", "", "junit.xml.gz", gzipOf("x")), http.StatusForbidden)
	breach(t, s, "told that the job has ended")
}

func TestUploadRedirects(t *testing.T) {
	for _, to := range []Redirect{Objects, Node} {
		s := newServer(t, Options{Uploads: to})
		a := newAgent(t, s)
		s.Offer(leaves(spec.Artifact{Type: "archive", Format: "zip"}))
		j := a.take()
		zip := zipOf("out.txt", "result")
		r := a.upload(j, "archive", "zip", "", "artifacts.zip", zip)
		want(t, r, http.StatusTemporaryRedirect)
		contentType, body := form("artifacts.zip", zip)
		h := http.Header{"Content-Type": {contentType}}
		if to == Node {
			h.Set(jobToken, j.Token)
		}
		want(t, a.do("POST", r.Header.Get("Location"), h, strings.NewReader(string(body))), http.StatusCreated)
		clean(t, s)
		if got, _ := s.Artifacts(j.ID); len(got) != 1 {
			t.Errorf("%s: %+v", to, got)
		}
		if to == Objects {
			h.Set(jobToken, j.Token)
			_ = a.do("POST", r.Header.Get("Location"), h, strings.NewReader(string(body)))
			breach(t, s, "JOB-TOKEN has no business here")
		}
	}
}

// produce is a pipeline of a job that leaves an archive and a dotenv report, and one that gets them.
func produce() *ciyaml.Pipeline {
	return &ciyaml.Pipeline{Stages: []string{"build", "test"}, Jobs: []*ciyaml.Job{
		{Name: "build", Stage: "build", When: "on_success", Artifacts: []spec.Artifact{
			{Type: "archive", Format: "zip"}, {Type: "dotenv", Format: "gzip"},
		}},
		{Name: "test", Stage: "test", When: "on_success", Dependencies: []string{"build"}},
	}}
}

func TestDownload(t *testing.T) {
	for _, to := range []Redirect{Direct, Objects, Node} {
		t.Run("to "+string(to), func(t *testing.T) {
			s := newServer(t, Options{Downloads: to})
			a := newAgent(t, s)
			if _, err := s.Run(t.Context(), RunOptions{Pipeline: produce()}); err != nil {
				t.Fatal(err)
			}
			build := a.take()
			zip := zipOf("out.txt", "result")
			want(t, a.upload(build, "archive", "zip", "", "artifacts.zip", zip), http.StatusCreated)
			want(t, a.upload(build, "dotenv", "gzip", "", "build.env.gz", gzipOf("VERSION=1.2\nQUOTED=\"a b\"\n")), http.StatusCreated)
			a.succeed(build)
			test := a.take()
			if len(test.Dependencies) != 1 || test.Dependencies[0].ID != build.ID ||
				test.Dependencies[0].ArtifactsFile.Filename != "artifacts.zip" || test.Dependencies[0].ArtifactsFile.Size != int64(len(zip)) {
				t.Fatalf("%+v", test.Dependencies)
			}
			if got := value(test, "VERSION") + " " + value(test, "QUOTED"); got != "1.2 a b" {
				t.Errorf("dotenv: %q", got)
			}
			get := func(path string, token string) answer {
				h := http.Header{}
				if token != "" {
					h.Set(jobToken, token)
				}
				return a.do("GET", path, h, nil, header("Accept", "*/*"))
			}
			path := fmt.Sprintf("jobs/%d/artifacts", build.ID)
			r := get(path, test.Dependencies[0].Token)
			want(t, r, http.StatusOK)
			if string(r.body) != string(zip) {
				t.Errorf("%d bytes", len(r.body))
			}
			r = get(path+"?direct_download=true", test.Dependencies[0].Token)
			if to == Direct {
				want(t, r, http.StatusOK)
			} else {
				want(t, r, http.StatusFound)
				token := ""
				if to == Node {
					token = test.Dependencies[0].Token
				}
				r = get(r.Header.Get("Location"), token)
				want(t, r, http.StatusOK)
				if string(r.body) != string(zip) {
					t.Errorf("%d bytes", len(r.body))
				}
			}
			clean(t, s)
			want(t, get(path, test.Token), http.StatusForbidden)
			breach(t, s, "the dependency's")
			a.succeed(test)
			want(t, get(path, test.Dependencies[0].Token), http.StatusForbidden)
		})
	}
}

func TestNoArtifact(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	if _, err := s.Run(t.Context(), RunOptions{Pipeline: produce()}); err != nil {
		t.Fatal(err)
	}
	build := a.take()
	a.succeed(build)
	test := a.take()
	if test.Dependencies[0].ArtifactsFile.Filename != "" {
		t.Errorf("%+v", test.Dependencies)
	}
	r := a.do("GET", fmt.Sprintf("jobs/%d/artifacts", build.ID), http.Header{jobToken: {test.Dependencies[0].Token}}, nil)
	want(t, r, http.StatusNotFound)
}

func TestDotenv(t *testing.T) {
	for _, text := range []string{"no equals sign", "1BAD=x", strings.Repeat("A=b\n", 21), "A=" + strings.Repeat("x", 6000)} {
		if v, err := dotenv([]byte(text)); err == nil {
			t.Errorf("%.20q is taken: %v", text, v)
		}
	}
}

// value is that of a job's variable: the last of the name counts.
func value(j spec.Job, key string) string {
	out := ""
	for _, v := range j.Variables {
		if v.Key == key {
			out = v.Value
		}
	}
	return out
}
