package measure

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// A chart's measures, in pixels: panels of a fixed size, side by side in rows.
const (
	panelWidth, panelHeight = 260, 190
	panelsARow              = 4
	padLeft, padTop         = 46, 30
	plotWidth, plotHeight   = 196, 120
	headerHeight            = 48
)

// WriteSVG draws a panel for each probe of each series: the ratio to the first place by place, with the 95 % interval as
// a band, the place's noise in grey, and, for processor time by depth, what the founding document claims.
func (r *Report) WriteSVG(w io.Writer) error {
	var b strings.Builder
	y := 0
	for _, o := range r.Series {
		y += drawSeries(&b, o, y)
	}
	width := panelsARow * panelWidth
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">
<rect width="100%%" height="100%%" fill="white"/>
%s</svg>
`, width, y, b.String())
	return err
}

// drawSeries draws the panels of one series from y on, and returns how high they are.
func drawSeries(b *strings.Builder, o Outcome, y int) int {
	fmt.Fprintf(b, `<text x="12" y="%d" font-size="15">%s: %s</text>`+"\n", y+30, escape(o.Name), escape(o.Title))
	drawn := 0
	for _, p := range o.Probes {
		var there []Comparison
		for _, c := range p.Comparisons {
			if c.Pairs > 0 {
				there = append(there, c)
			}
		}
		if len(there) < 2 {
			continue
		}
		drawPanel(b, o, p, there, drawn%panelsARow*panelWidth, y+headerHeight+drawn/panelsARow*panelHeight)
		drawn++
	}
	return headerHeight + (drawn+panelsARow-1)/panelsARow*panelHeight
}

func drawPanel(b *strings.Builder, o Outcome, p Result, there []Comparison, x, y int) {
	low, high := 0.98, 1.02 // the least that an axis shows
	for _, c := range there {
		low = math.Min(low, math.Min(c.Interval.Low, c.Noise.Low))
		high = math.Max(high, math.Max(c.Interval.High, c.Noise.High))
	}
	claims := o.Name == CauseDepth && p.Name == "integer"
	if claims {
		for _, c := range there {
			high = math.Max(high, Claimed(c.Depth))
		}
	}
	atX := func(i int) float64 { return float64(padLeft) + float64(plotWidth)*float64(i)/float64(len(there)-1) }
	atY := func(ratio float64) float64 { // on a logarithmic axis twice as long and half as long are as far
		return float64(padTop) + float64(plotHeight)*(math.Log(high)-math.Log(ratio))/(math.Log(high)-math.Log(low))
	}
	fmt.Fprintf(b, `<g transform="translate(%d,%d)">`, x, y)
	fmt.Fprintf(b, `<text x="%d" y="18" font-weight="bold">%s</text>`, padLeft, escape(p.Name))
	band(b, "#e4e4e4", there, atX, atY, func(c Comparison) Interval { return c.Noise })
	band(b, "#9ec5e8", there, atX, atY, func(c Comparison) Interval { return c.Interval })
	fmt.Fprintf(b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#888"/>`, padLeft, atY(1), padLeft+plotWidth, atY(1))
	line(b, "#1f5f99", "", there, atX, atY, func(c Comparison) float64 { return c.Ratio })
	if claims {
		line(b, "#c0392b", "4 3", there, atX, atY, func(c Comparison) float64 { return Claimed(c.Depth) })
		fmt.Fprintf(b, `<text x="%d" y="18" fill="#c0392b" text-anchor="end">claimed</text>`, padLeft+plotWidth)
	}
	for _, tick := range []float64{low, 1, high} {
		if tick != 1 && math.Abs(atY(tick)-atY(1)) < 12 { // one would be on the other
			continue
		}
		fmt.Fprintf(b, `<text x="%d" y="%.1f" text-anchor="end">%.2f</text>`, padLeft-4, atY(tick)+4, tick)
	}
	for i, c := range there {
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle" font-size="9">%s</text>`, atX(i), padTop+plotHeight+14, escape(shortest(o, c)))
		fill := "white"
		if c.Detected {
			fill = "#1f5f99"
		}
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" stroke="#1f5f99" fill="%s"><title>%s: %.3f, %.3f to %.3f</title></circle>`,
			atX(i), atY(c.Ratio), fill, escape(c.Place), c.Ratio, c.Interval.Low, c.Interval.High)
	}
	b.WriteString("</g>\n")
}

// shortest is a place's name where there is little room.
func shortest(o Outcome, c Comparison) string {
	if o.Name == CauseStorage || o.Name == CauseDaemons {
		return c.Place
	}
	return fmt.Sprint(c.Depth)
}

func band(b *strings.Builder, colour string, there []Comparison, x func(int) float64, y func(float64) float64, of func(Comparison) Interval) {
	var points []string
	for i, c := range there {
		points = append(points, fmt.Sprintf("%.1f,%.1f", x(i), y(of(c).High)))
	}
	for i := len(there) - 1; i >= 0; i-- {
		points = append(points, fmt.Sprintf("%.1f,%.1f", x(i), y(of(there[i]).Low)))
	}
	fmt.Fprintf(b, `<polygon points="%s" fill="%s" fill-opacity="0.7"/>`, strings.Join(points, " "), colour)
}

func line(b *strings.Builder, colour, dashes string, there []Comparison, x func(int) float64, y func(float64) float64, of func(Comparison) float64) {
	var points []string
	for i, c := range there {
		points = append(points, fmt.Sprintf("%.1f,%.1f", x(i), y(of(c))))
	}
	fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5" stroke-dasharray="%s"/>`, strings.Join(points, " "), colour, dashes)
}

func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;").Replace(s)
}
