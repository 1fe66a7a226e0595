variable "TAG" { default = "dev" }

group "default" { targets = ["app"] }

target "base" {
  context = "base"
}

target "app" {
  name     = name
  matrix   = { name = ["api", "web"] }
  context  = "app"
  contexts = { base = "target:base" }
  args     = { NAME = name }
  tags     = ["app/${name}:${TAG}"]
}
