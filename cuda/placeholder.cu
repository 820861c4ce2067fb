// keeps an empty library buildable; goes when the first source arrives
