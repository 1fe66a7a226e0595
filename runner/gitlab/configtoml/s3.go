package configtoml

import (
	"net/url"
	"strings"
)

// s3 is where gitlab-runner keeps caches.
type s3 struct{ bucket, region, server, pathStyle, insecure string }

// s3Keys are the keys of runners.cache.s3.
func s3Keys() []string {
	return []string{
		"ServerAddress", "AccessKey", "SecretKey", "SessionToken", "BucketName", "BucketLocation", "Insecure", "AuthenticationType",
		"ServerSideEncryption", "ServerSideEncryptionKeyID", "DualStack", "PathStyle", "Accelerate", "RoleARN", "UploadRoleARN",
		"AssumeRoleMaxConcurrency", "DisableAssumeRoleCredentialsCaching",
	}
}

func takeCacheType(_ *builder, k key) (Verdict, string) {
	switch k.text() {
	case "s3", "s3v2":
		return ByHand, "set cache.url: see runners.cache.s3"
	case "":
		return Ignored, "caches are kept on this machine"
	}
	return ByHand, "caches are kept on this machine or in S3 (cache.url)"
}

// takeS3 collects what makes up cache.url.
func takeS3(b *builder, k key) (Verdict, string) {
	if b.s3Line == 0 {
		b.s3Line = k.line
	}
	const part = "it is part of cache.url: see runners.cache.s3"
	switch k.name() {
	case "BucketName":
		b.s3.bucket = k.text()
	case "BucketLocation":
		b.s3.region = k.text()
	case "ServerAddress":
		b.s3.server = k.text()
	case "PathStyle":
		b.s3.pathStyle = k.text()
	case "Insecure":
		b.s3.insecure = k.text()
	case "AccessKey", "SecretKey", "SessionToken":
		return ByHand, "credentials are the daemon's: set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN in its environment, or have a file as AWS's tools do"
	case "RoleARN", "UploadRoleARN", "AuthenticationType":
		return ByHand, "credentials are looked for as AWS's tools do: in the environment, in files, and from the machine's role"
	case "ServerSideEncryption", "ServerSideEncryptionKeyID":
		return ByHand, "set it as the bucket's default"
	default:
		return Ignored, "jobs do not speak with the bucket: the daemon does"
	}
	return ByHand, part
}

// hint is the configuration to write.
func (s s3) hint() string {
	q := url.Values{}
	if s.region != "" {
		q.Set("region", s.region)
	}
	if s.server != "" && !strings.HasSuffix(s.server, ".amazonaws.com") {
		scheme := "https://"
		if s.insecure == "true" {
			scheme = "http://"
		}
		q.Set("endpoint", scheme+s.server)
		if s.pathStyle != "false" {
			q.Set("use_path_style", "true")
		}
	}
	bucket := s.bucket
	if bucket == "" {
		bucket = "NAME"
	}
	text := "s3://" + bucket
	if len(q) > 0 {
		text += "?" + q.Encode()
	}
	return "set cache.url: " + text + "; caches begin anew"
}
