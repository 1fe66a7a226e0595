module example.com/platform

go 1.26

require (
	github.com/google/uuid v1.6.0
	go.etcd.io/bbolt v1.4.3
	gopkg.in/yaml.v3 v3.0.1
)

require golang.org/x/sys v0.29.0 // indirect
