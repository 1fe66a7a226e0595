// Package runnerd holds what concerns the module as a whole. See ARCHITECTURE.md.
package runnerd
