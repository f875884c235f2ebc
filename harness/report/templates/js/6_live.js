/* A page from `harness view` asks its own server whether the run's files have changed; it asks nobody else. */
if (root.dataset.state) {
  const ask = async () => {
    try {
      const said = await (await fetch(root.dataset.state, { cache: "no-store" })).text();
      byId("news").hidden = said === root.dataset.version;
    } catch {
      return; /* the server has ended; what is shown stays */
    }
  };
  setInterval(ask, 3000);
  byId("news").addEventListener("click", () => location.reload());
}
