//go:build tools

// Package tools pins the real CRI clients that Bulkhead is driven and tested with. hack/build compiles crictl and the
// critest test binary from these packages; the imports keep what they need in go.mod and go.sum.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/cmd/critest"
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
