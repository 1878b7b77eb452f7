// Ctrl+Enter or Cmd+Enter runs, from anywhere on the page. Taken before the focused field sees it, because a
// checkbox, for one, is toggled by Enter.
document.addEventListener(
    'keydown',
    (event) => {
        if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
        event.preventDefault();
        event.stopPropagation();
        const run = document.getElementById('run');
        if (run && !run.disabled) run.click();
    },
    { capture: true },
);

// On a small screen the sidebar would cover the page it belongs to.
function foldSidebar(attempts) {
    const sidebar = document.querySelector('.sidebar');
    const toggle = sidebar && sidebar.querySelector('.toggle-button');
    if (!toggle) {
        if (attempts > 0) setTimeout(() => foldSidebar(attempts - 1), 50);
    } else if (sidebar.classList.contains('open')) {
        toggle.click();
    }
}
if (window.matchMedia('(max-width: 768px)').matches) foldSidebar(200);
