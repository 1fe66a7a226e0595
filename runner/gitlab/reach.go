package gitlab

import (
	"context"
	"fmt"
	"net/http"
)

// Reach reports whether something answers at the forge's API. Nothing is asked that needs a token: any answer will do,
// but that of a forge, or of a proxy before it, that is broken.
func (c *Client) Reach(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, c.url("version", nil).String(), nil)
	if err != nil {
		return err
	}
	res, err := c.plain.Do(req)
	if err != nil {
		return err
	}
	defer c.plain.CloseIdleConnections()
	_ = res.Body.Close()
	if res.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("%s answers %s", c.base, res.Status)
	}
	return nil
}
