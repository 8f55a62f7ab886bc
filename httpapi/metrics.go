package httpapi

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the API's own; those of other rooms are on the same registry.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	refused  prometheus.Counter
	logins   *prometheus.CounterVec
}

func newMetrics(reg *prometheus.Registry, s *Server) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "palisade_http_requests_total",
			Help: "Requests answered, by route, method and status code.",
		}, []string{"route", "method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "palisade_http_request_seconds",
			Help:    "Time from the request's headers to the end of the answer, by route, method and class of the status code; streams are not counted.",
			Buckets: []float64{.0005, .001, .002, .003, .005, .01, .02, .05, .1, .3, 1, 5, 30},
		}, []string{"route", "method", "code"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "palisade_http_connections_refused_total",
			Help: "TCP connections closed because too many were open.",
		}),
		logins: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "palisade_http_logins_total",
			Help: "Logins, by outcome: done, refused (wrong), limited (tried too often), busy (too many at once).",
		}, []string{"outcome"}),
	}
	for _, outcome := range []string{"done", "refused", "limited", "busy"} {
		m.logins.WithLabelValues(outcome) // there from the start: a rate that begins with the first is blind to it
	}
	for _, c := range []prometheus.Collector{
		m.requests, m.seconds, m.refused, m.logins,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "palisade_http_streams",
			Help: "Open event streams.",
		}, func() float64 { return float64(s.streams.Load()) }),
	} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// routeMetrics are resolved once for each route and status code, so that a request costs no label lookup.
type routeMetrics struct {
	m             *metrics
	route, method string
	stream        bool
	codes         sync.Map // int -> codeMetrics
}

type codeMetrics struct {
	requests prometheus.Counter
	seconds  prometheus.Observer // nil for streams
}

func (m *metrics) route(route, method string, stream bool) *routeMetrics {
	return &routeMetrics{m: m, route: route, method: method, stream: stream}
}

func (rm *routeMetrics) observe(code int, took time.Duration) {
	known, ok := rm.codes.Load(code)
	if !ok {
		c := codeMetrics{requests: rm.m.requests.WithLabelValues(rm.route, rm.method, strconv.Itoa(code))}
		if !rm.stream {
			c.seconds = rm.m.seconds.WithLabelValues(rm.route, rm.method, strconv.Itoa(code/100)+"xx")
		}
		known, _ = rm.codes.LoadOrStore(code, c)
	}
	c := known.(codeMetrics)
	c.requests.Inc()
	if c.seconds != nil {
		c.seconds.Observe(took.Seconds())
	}
}
