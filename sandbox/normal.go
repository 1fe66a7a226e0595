package sandbox

// Level is one layer of a nesting as it was written, and what the normal form makes of it.
type Level struct {
	Kind      Kind   `json:"kind"`
	Flattened bool   `json:"flattened"`
	Why       string `json:"why"` // it was flattened, or not: a clause for people
}

// Normal is the form of n that is run, and what became of each level. It is never deeper than n, and no layer of it
// holds what none held in n: so a policy that allows n allows it. The reverse does not hold, which is why a Policy
// judges what was written.
//
// There is one rule: a container of a container, made for nothing but an engine or a module, is theirs. Engines are
// companions in their sandbox's pod and bring their container; a module runs in the sandbox's own, in which nothing else
// runs then, and sees no more of it than is declared. Below an engine nothing is flattened: what runs there
// would reach an engine that it was kept from, and with it all of that engine's containers.
func (n Nesting) Normal() (Nesting, []Level) {
	levels := make([]Level, len(n))
	normal := make(Nesting, 0, len(n))
	for i, kind := range n {
		l := &levels[i]
		l.Kind = kind
		inSandbox := len(normal) == 1 && normal[0] == Container
		switch next := payloadOf(n[i:]); {
		case i == 0:
			l.Why = "the outermost layer is the job's boundary to the machine"
		case kind == Container && next == WASM && inSandbox:
			l.Flattened, l.Why = true, "the module's runtime is in the sandbox's own container, in which nothing else runs"
			continue
		case kind == Container && next != "" && inSandbox:
			l.Flattened, l.Why = true, "the "+string(next)+" engine runs beside the job, on the sandbox's own layer, and brings its container"
			continue
		case kind == Container && n[i-1] == DinD:
			l.Why = "what runs in it is kept from the engine around it"
		case kind == Container:
			l.Why = "it is a boundary around what runs in it"
		case kind == WASM:
			l.Why = "a module's runtime is a boundary of its own"
		case inSandbox:
			l.Why = "it is the sandbox's own engine"
		default:
			l.Why = "an engine of its own sees no images or containers of the one around it"
		}
		normal = append(normal, kind)
	}
	return normal, levels
}

// payloadOf is the engine, or the module, that containers at the beginning of n are there for, if nothing else is in them.
func payloadOf(n Nesting) Kind {
	for _, kind := range n {
		switch kind {
		case Container:
		case DinD, BuildKit, WASM:
			return kind
		default:
			return ""
		}
	}
	return ""
}
