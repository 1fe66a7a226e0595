# A farm of real images: Go services from one Dockerfile, a Node application, a C program, a shared base.
#
#   runnerd build --push examples/farm          all of it, each target as a job
#   runnerd build examples/farm web             one target

variable "REGISTRY" {
  default = "registry.runnerd.internal"
}

variable "VERSION" {
  default = "dev"
}

group "default" {
  targets = ["service", "service-debug", "web", "web-test", "wordcount", "toolbox", "docs", "broken"]
}

# What the images that run something have in common. Built once, whoever needs it first.
target "base" {
  context = "base"
}

# One Dockerfile, three services.
target "service" {
  name     = "service-${item}"
  matrix   = { item = ["api", "worker", "gateway"] }
  context  = "services"
  contexts = { base = "target:base" }
  args     = { SERVICE = item, VERSION = VERSION }
  labels   = { "org.opencontainers.image.version" = VERSION }
  tags     = ["${REGISTRY}/farm/${item}:${VERSION}"]
}

target "service-debug" {
  name     = "service-${item}-debug"
  matrix   = { item = ["api", "worker"] }
  inherits = ["service-${item}"]
  target   = "debug"
  tags     = ["${REGISTRY}/farm/${item}:${VERSION}-debug"]
}

target "web" {
  context = "web"
  tags    = ["${REGISTRY}/farm/web:${VERSION}"]
}

target "web-test" {
  inherits = ["web"]
  target   = "test"
  tags     = ["${REGISTRY}/farm/web-test:${VERSION}"]
}

target "wordcount" {
  context = "tools/wordcount"
  tags    = ["${REGISTRY}/farm/wordcount:${VERSION}"]
}

target "toolbox" {
  contexts          = { base = "target:base" }
  dockerfile-inline = <<-EOT
    FROM base
    RUN apt-get update && apt-get install -y --no-install-recommends jq curl && rm -rf /var/lib/apt/lists/*
    CMD ["jq", "--version"]
  EOT
  tags              = ["${REGISTRY}/farm/toolbox:${VERSION}"]
}

target "docs" {
  context = "docs"
  tags    = ["${REGISTRY}/farm/docs:${VERSION}"]
}

# Fails on purpose: its job is reported as failed, the others go on.
target "broken" {
  dockerfile-inline = <<-EOT
    FROM debian:bookworm-slim
    RUN echo "this target fails on purpose" >&2 && exit 3
  EOT
  tags              = ["${REGISTRY}/farm/broken:${VERSION}"]
}
