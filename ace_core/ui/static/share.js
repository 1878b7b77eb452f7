// The clipboard is closed to pages that are not served safely; the text then stays selected for Ctrl+C.
window.aceCopy = async (text) => {
    try {
        await navigator.clipboard.writeText(text);
        return text;
    } catch {
        const field = document.querySelector('#shared textarea');
        if (field) setTimeout(() => field.select(), 100);
        return text;
    }
};

window.aceCopyLink = (query) => window.aceCopy(location.origin + location.pathname + query);

window.aceDownload = (text) => {
    if (!text) return;
    const address = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
    const link = document.createElement('a');
    Object.assign(link, { href: address, download: 'run.json' });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
};
