const express = require("express");

const goods = { tea: 4, coffee: 7 };

const app = express();
app.get("/goods/:name", (request, response) => {
  const price = goods[request.params.name];
  if (price === undefined) return response.status(404).json({ error: "no such thing" });
  response.json({ name: request.params.name, price });
});

module.exports = { app };
if (require.main === module) app.listen(8080);
