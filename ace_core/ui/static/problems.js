function clear() {
    document.querySelectorAll('.ace-problem').forEach((node) => node.remove());
    document.querySelectorAll('[data-ace-invalid]').forEach((input) => {
        for (const name of ['data-ace-invalid', 'aria-invalid', 'aria-describedby']) input.removeAttribute(name);
    });
}

function reveal(field) {
    const sidebar = field.closest('.sidebar');
    if (sidebar && !sidebar.classList.contains('open')) sidebar.querySelector('.toggle-button').click();
}

function draw() {
    if (!props.value) return;
    const { problems, focus } = JSON.parse(props.value);
    clear();
    let first = null;
    for (const [id, text] of problems) {
        const field = document.getElementById(id);
        if (!field) continue;
        const note = document.createElement('p');
        note.className = 'ace-problem';
        note.id = id + '-problem';
        note.setAttribute('role', 'alert');
        note.textContent = text;
        field.append(note);
        field.querySelectorAll('input, textarea').forEach((input) => {
            input.setAttribute('data-ace-invalid', '');
            input.setAttribute('aria-invalid', 'true');
            input.setAttribute('aria-describedby', note.id);
            first = first || input;
        });
    }
    if (focus && first) {
        reveal(first);
        first.focus();
    }
}

watch('value', draw);
draw();
