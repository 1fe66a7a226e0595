# What the benchmarks build beside the ten good images of examples/farm, as work of other kinds: a second Go
# module, whose packages two services share, a larger lockfile, a site made by one tool and served by another,
# a C library's user, interpreters and data from Debian's packages.

target "platform" {
  name     = "platform-${item}"
  matrix   = { item = ["ingest", "query"] }
  context  = "platform"
  contexts = { base = "target:base" }
  args     = { COMMAND = item }
  tags       = ["${REGISTRY}/farm/${item}:${VERSION}"]
}

target "platform-test" {
  context = "platform"
  target  = "test"
  tags    = ["${REGISTRY}/farm/platform-test:${VERSION}"]
}

target "storefront" {
  context = "storefront"
  tags    = ["${REGISTRY}/farm/storefront:${VERSION}"]
}

target "site" {
  context = "site"
  tags    = ["${REGISTRY}/farm/site:${VERSION}"]
}

target "site-server" {
  contexts          = { base = "target:base", site = "target:site" }
  dockerfile-inline = <<-EOT
    FROM base
    RUN apt-get update && apt-get install -y --no-install-recommends lighttpd && rm -rf /var/lib/apt/lists/*
    COPY --from=site / /var/www/html/
    CMD ["lighttpd", "-D", "-f", "/etc/lighttpd/lighttpd.conf"]
  EOT
  tags              = ["${REGISTRY}/farm/site-server:${VERSION}"]
}

target "squeeze" {
  context = "squeeze"
  tags    = ["${REGISTRY}/farm/squeeze:${VERSION}"]
}

target "report" {
  context  = "report"
  contexts = { base = "target:base" }
  tags     = ["${REGISTRY}/farm/report:${VERSION}"]
}

target "backup" {
  contexts          = { base = "target:base" }
  dockerfile-inline = <<-EOT
    FROM base
    RUN apt-get update && apt-get install -y --no-install-recommends sqlite3 rsync && rm -rf /var/lib/apt/lists/*
    RUN sqlite3 /app/schema.db 'create table runs (id integer primary key, ended text); insert into runs values (1, "never")'
    USER app
    CMD ["sqlite3", "/app/schema.db", "select * from runs"]
  EOT
  tags              = ["${REGISTRY}/farm/backup:${VERSION}"]
}

target "certs" {
  dockerfile-inline = <<-EOT
    FROM debian:bookworm-slim AS packages
    RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates tzdata && rm -rf /var/lib/apt/lists/*
    FROM scratch
    COPY --from=packages /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
    COPY --from=packages /usr/share/zoneinfo/Europe /usr/share/zoneinfo/Europe
  EOT
  tags              = ["${REGISTRY}/farm/certs:${VERSION}"]
}
